//! Working memory that a thread keeps from call to call.

use bytemuck::{Pod, Zeroable};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// A cache line. Scratch is made of these, so that no vector loaded from it straddles two lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: sixteen floats and no padding; any bits are valid.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

thread_local! {
    /// Pieces not in use, the one used last on top.
    static SCRATCH: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A piece of this thread's working memory, which is given back when it is dropped.
///
/// It is a guard and not a function that takes a closure: a closure's body would not be compiled for wide vectors.
pub(super) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    /// Takes `len` floats, their values unspecified.
    pub(super) fn take(len: usize) -> Self {
        let mut lines = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
        let needed = len.div_ceil(16);
        if lines.len() < needed {
            lines.resize(needed, Line([0.0; 16]));
        }
        Self { lines, len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        SCRATCH.with_borrow_mut(|pieces| pieces.push(lines));
    }
}

impl Deref for Scratch {
    type Target = [f32];

    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Scratch {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
