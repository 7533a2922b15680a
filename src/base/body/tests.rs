use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use tokio_test::task;

use super::*;

type Notes = Rc<RefCell<Vec<String>>>;

struct Noting(Notes);

impl Observe for Noting {
    fn head<B>(&mut self, response: &http::Response<B>, _: &Moment) {
        self.0
            .borrow_mut()
            .push(format!("head {}", response.status().as_u16()));
    }
    fn pending(&mut self, _: &Moment) {
        self.0.borrow_mut().push("pending".into());
    }
    fn data<D: Buf>(&mut self, data: &D, _: &Moment) {
        self.0
            .borrow_mut()
            .push(format!("data {}", data.remaining()));
    }
    fn end<E: Display + 'static>(self, end: End<'_, E>, _: &Moment) {
        self.0.borrow_mut().push(match end {
            End::Complete => "complete".into(),
            End::Trailers(trailers) => format!("trailers {}", trailers.len()),
            End::Error(error) => format!("error {error}"),
            End::Dropped => "dropped".into(),
        });
    }
}

/// Yields its steps; `None` is Pending. `known` makes `is_end_stream` honest, else it always says no.
struct Steps {
    steps: VecDeque<Option<Result<Frame<Bytes>, String>>>,
    known: bool,
}

impl Body for Steps {
    type Data = Bytes;
    type Error = String;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        match self.steps.pop_front() {
            Some(None) => Poll::Pending,
            Some(Some(step)) => Poll::Ready(Some(step)),
            None => Poll::Ready(None),
        }
    }
    fn is_end_stream(&self) -> bool {
        self.known && self.steps.is_empty()
    }
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(7)
    }
}

fn data(text: &'static str) -> Option<Result<Frame<Bytes>, String>> {
    Some(Ok(Frame::data(Bytes::from_static(text.as_bytes()))))
}

fn trailers() -> Option<Result<Frame<Bytes>, String>> {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", http::HeaderValue::from_static("0"));
    Some(Ok(Frame::trailers(map)))
}

fn run(steps: Vec<Option<Result<Frame<Bytes>, String>>>, known: bool, polls: usize) -> Vec<String> {
    let notes = Notes::default();
    let body = Steps {
        steps: steps.into(),
        known,
    };
    let mut body = task::spawn(ObservedBody::observed(body, Noting(notes.clone())));
    for _ in 0..polls {
        let _ = body.enter(|cx, body| body.poll_frame(cx));
    }
    drop(body);
    notes.take()
}

#[test]
fn each_ending_is_reported_once() {
    assert_eq!(
        run(vec![data("ab"), trailers()], false, 5),
        ["data 2", "trailers 1"]
    );
    assert_eq!(
        run(vec![data("ab"), trailers()], false, 2),
        ["data 2", "trailers 1"]
    );
    assert_eq!(run(vec![data("ab")], false, 5), ["data 2", "complete"]);
    assert_eq!(run(vec![data("ab")], true, 1), ["data 2", "complete"]);
    assert_eq!(
        run(vec![data("ab"), Some(Err("cut".into()))], false, 3),
        ["data 2", "error cut"]
    );
    assert_eq!(
        run(vec![data("ab"), None, data("c")], false, 2),
        ["data 2", "pending", "dropped"]
    );
    assert_eq!(run(vec![], false, 0), ["dropped"]);
    assert_eq!(run(vec![], true, 0), ["complete"]);
}

#[test]
fn a_dropped_future_is_an_end() {
    let notes = Notes::default();
    let future = std::future::pending::<Result<http::Response<Steps>, String>>();
    let mut future = task::spawn(ObservedFuture::observed(future, Noting(notes.clone())));
    assert!(future.poll().is_pending());
    drop(future);
    assert_eq!(*notes.borrow(), ["dropped"]);
}

#[test]
fn a_body_at_its_end_is_over_with_the_headers() {
    let notes = Notes::default();
    let body = Steps {
        steps: VecDeque::new(),
        known: true,
    };
    let future = std::future::ready(Ok::<_, String>(http::Response::new(body)));
    let mut future = task::spawn(ObservedFuture::observed(future, Noting(notes.clone())));
    let Poll::Ready(Ok(response)) = future.poll() else {
        panic!("not ready")
    };
    assert_eq!(*notes.borrow(), ["head 200", "complete"]);
    assert!(response.body().is_end_stream());
    assert_eq!(response.body().size_hint().exact(), Some(7));
    drop(response);
    assert_eq!(notes.borrow().len(), 2);
}

#[test]
fn a_panic_in_the_consumer_is_a_drop() {
    let notes = std::sync::Arc::new(std::sync::Mutex::new(None));
    struct Last(std::sync::Arc<std::sync::Mutex<Option<bool>>>);
    impl Observe for Last {
        fn end<E: Display + 'static>(self, end: End<'_, E>, _: &Moment) {
            let dropped = matches!(end, End::Dropped) && std::thread::panicking();
            *self.0.lock().unwrap() = Some(dropped);
        }
    }
    let seen = notes.clone();
    let _ = std::panic::catch_unwind(move || {
        let _body = ObservedBody::observed(http_body_util::Full::<Bytes>::from("x"), Last(seen));
        panic!("consumer");
    });
    assert_eq!(*notes.lock().unwrap(), Some(true));
}
