// The frequencies of a positional encoding, in radians per unit of level. The launch gives them as a table, because
// WGSL's own exp is less accurate.
const FREQUENCIES = array(
//@frequencies
);
