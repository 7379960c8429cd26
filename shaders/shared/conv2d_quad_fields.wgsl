    // A quad is 4 neighbouring pixels or tiles of a row. Quads in a row, rows in an image, the first quad of this
    // launch, and the number of all quads.
    row_quads: u32,
    image_rows: u32,
    first_quad: u32,
    quads: u32,
