// The frequencies of a positional encoding, in radians per unit of level: a table that the operation writes, since
// WGSL's own exp is less accurate.
const FREQUENCIES = array(
//@frequencies
);
