//! A future that a callback completes: wgpu reports mapped buffers by callback.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// The value, once it is there, and who waits for it.
struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// The future: it is ready when the callback has given the value.
pub(super) struct Signal<T>(Arc<Mutex<State<T>>>);

/// A future, and the function that completes it.
pub(super) fn signal<T: Send + 'static>() -> (Signal<T>, impl FnOnce(T) + Send + 'static) {
    let state = Arc::new(Mutex::new(State { value: None, waker: None }));
    let signal = Signal(state.clone());
    let complete = move |value| {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.value = Some(value);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    };
    (signal, complete)
}

impl<T> Future for Signal<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context) -> Poll<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
