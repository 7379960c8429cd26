//! Image files in and out, colour, padding.
