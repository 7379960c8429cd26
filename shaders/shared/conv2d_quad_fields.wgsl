    // Quads (4 neighbours, pixels or tiles) in a row, rows in an image, the first quad of this launch and all quads.
    row_quads: u32,
    image_rows: u32,
    first_quad: u32,
    quads: u32,
