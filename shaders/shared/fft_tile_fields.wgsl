    kernel_h: u32,
    kernel_w: u32,
    // Tiles in a row, rows of tiles in an image, the first tile of this launch, and the number of all tiles.
    row_tiles: u32,
    image_rows: u32,
    first_tile: u32,
    tiles: u32,
