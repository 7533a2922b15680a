use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Method, Request, Response, Version as HttpVersion};
use http_body::Body;

use super::body::ResponseBody;
use super::connection::{Connection, name_of};
use super::core::{self, Refusal, Reused, Version, WaiterId};
use super::error::Error;
use super::lease::Lease;
use super::request;
use super::shared::{Asked, Shared};
use crate::base::clock::{self, Instant, Moment};
use crate::base::cost::{self, Toll};
use crate::base::error::BoxError;
use crate::base::phases::{Phase, Timings};

/// The response to come from a [`ConnPool`](super::ConnPool). The request is on its way from the call on, polled or not: a
/// future that is kept and not polled keeps its connection.
///
/// Dropped, it gives back what it has: its place in the queue, its HTTP/2 stream, or its HTTP/1 connection, which closes
/// when the request was under way.
#[must_use = "dropped, the request is given up"]
pub struct ResponseFuture<B: Send + 'static> {
    start: Instant,
    /// When the connection was granted.
    granted: Instant,
    retries: u32,
    state: State<B>,
    toll: Toll,
}

enum State<B: Send + 'static> {
    Waiting(Box<Waiting<B>>),
    Sent(Lease<B>),
    Failed(Error),
    Done,
}

struct Waiting<B: Send + 'static> {
    shared: Arc<Shared<B>>,
    waiter: WaiterId,
    host: Arc<str>,
    since: Instant,
    req: Option<Request<B>>,
}

impl<B: Send + 'static> ResponseFuture<B> {
    /// Whether the request still waits for a connection: nothing of it was sent, and the pool's own timeouts bound it.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }
}

impl<B> ResponseFuture<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    #[inline]
    pub(super) fn new(shared: &Arc<Shared<B>>, req: Request<B>) -> Self {
        let toll = shared.cost.call();
        let _own = toll.own();
        let start = clock::now();
        let mut future = Self {
            start,
            granted: start,
            retries: shared.options.retries,
            state: State::Done,
            toll,
        };
        if let Some(events) = &shared.options.events {
            match name_of(req.uri()) {
                Ok(host) => events.get_conn(&host),
                Err(error) => {
                    future.state = State::Failed(error);
                    return future;
                }
            }
        }
        future.state = future.ask(shared, req, false);
        future
    }

    /// Asks for a connection, and sends on it if there is one.
    fn ask(&mut self, shared: &Arc<Shared<B>>, req: Request<B>, before: bool) -> State<B> {
        let now = self.granted;
        let Some(asked) = shared.ask(now, req.uri(), before) else {
            return State::Failed(Error::uri(req.uri()));
        };
        match asked {
            Asked::Granted(grant, connection) => {
                let lease = Lease::new(connection, grant.reused);
                self.send(lease, req)
            }
            Asked::Queued(waiter) => match name_of(req.uri()) {
                Ok(host) => State::Waiting(Box::new(Waiting {
                    shared: shared.clone(),
                    waiter,
                    host,
                    since: now,
                    req: Some(req),
                })),
                Err(error) => State::Failed(error),
            },
            Asked::Refused(refusal) => match name_of(req.uri()) {
                Ok(host) => State::Failed(refused(shared, host, refusal, now)),
                Err(error) => State::Failed(error),
            },
        }
    }

    fn send(&mut self, mut lease: Lease<B>, mut req: Request<B>) -> State<B> {
        let connection = lease.connection.clone();
        if let Some(events) = &connection.shared.options.events {
            let idle = idle(lease.reused, self.granted);
            events.got_conn(&connection.origin.name, lease.reused.is_some(), idle);
        }
        match lease.version() {
            Version::Http1 if req.version() == HttpVersion::HTTP_2 => {
                return State::Failed(Error::version(connection.host()));
            }
            Version::Http1 => {
                let proxied = connection.made.get().is_some_and(|made| made.proxied);
                request::for_http1(&mut req, &connection.origin, proxied);
            }
            Version::Http2 if req.method() == Method::CONNECT => request::for_connect(&mut req),
            Version::Http2 => request::without_user(&mut req),
        }
        match lease.send(req) {
            Ok(()) => State::Sent(lease),
            Err(req) => {
                lease.refused();
                self.again(&connection, req, None)
            }
        }
    }

    /// Tries once more with a request nothing of which was sent.
    fn again(
        &mut self,
        connection: &Arc<Connection<B>>,
        mut req: Request<B>,
        error: Option<hyper::Error>,
    ) -> State<B> {
        self.granted = clock::now();
        if self.retries == 0 {
            let waited = self.granted.saturating_duration_since(self.start);
            return State::Failed(match error {
                Some(error) => Error::send(connection.host(), waited, false, error),
                None => Error::gone(connection.host(), waited),
            });
        }
        self.retries -= 1;
        connection.shared.measures.retried();
        if let Some(events) = &connection.shared.options.events {
            events.retried(&connection.origin.name);
        }
        request::restore(&mut req, &connection.origin);
        self.ask(&connection.shared, req, true)
    }

    fn answered(
        &mut self,
        mut lease: Lease<B>,
        response: Response<hyper::body::Incoming>,
    ) -> Response<ResponseBody> {
        let now = Moment::new();
        let connection = &lease.connection;
        let options = &connection.shared.options;
        let (mut parts, body) = response.into_parts();
        if let Some(made) = connection.made.get() {
            made.connected.get_extras(&mut parts.extensions);
        }
        if let Some(events) = &options.events {
            events.got_first_response_byte(&connection.origin.name);
        }
        let timings = options.timings.then(|| {
            let spare = lease.spare();
            let dial = lease.reused.is_none().then_some(&lease.connection.dial);
            let idle = idle(lease.reused, self.granted);
            Timings::again(spare, self.start, self.granted, now.now(), idle, dial)
        });
        if let Some(timings) = &timings {
            parts.extensions.insert(timings.clone());
        }
        let stream = lease.answered(&now, timings.as_ref());
        Response::from_parts(parts, ResponseBody::new(body, timings, stream))
    }
}

/// How long the connection had idled.
fn idle(reused: Option<Reused>, granted: Instant) -> Option<Duration> {
    match reused? {
        Reused::IdleSince(since) => Some(granted.saturating_duration_since(since)),
        Reused::Busy => None,
    }
}

fn refused<B: Send + 'static>(
    shared: &Arc<Shared<B>>,
    host: Arc<str>,
    refusal: Refusal,
    now: Instant,
) -> Error {
    match refusal {
        Refusal::Full { pending } => {
            let limit = shared.lock().core.limits.pending;
            Error::overloaded(host, pending, limit)
        }
        Refusal::BackingOff { until, cause } => {
            Error::backing_off(host, until.saturating_duration_since(now), cause)
        }
        Refusal::Closed => Error::closed(host, Duration::ZERO),
    }
}

impl<B> Future for ResponseFuture<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let _own = this.toll.own();
        loop {
            match &mut this.state {
                State::Waiting(waiting) => {
                    let (answer, connection) = ready!(waiting.poll(cx));
                    let State::Waiting(mut waiting) = mem::replace(&mut this.state, State::Done)
                    else {
                        unreachable!("it waited");
                    };
                    this.granted = clock::now();
                    let waited = this.granted.saturating_duration_since(waiting.since);
                    waiting.shared.measures.waited(&answer, waited);
                    let Some(req) = waiting.req.take() else {
                        unreachable!("who waits has a request");
                    };
                    this.state = match (answer, connection) {
                        (core::Answer::Granted(grant), Some(connection)) => {
                            this.send(Lease::new(connection, grant.reused), req)
                        }
                        // It was lost between the grant and now.
                        (core::Answer::Granted(_), None) => this.ask(&waiting.shared, req, true),
                        (answer, _) => {
                            let waited = this.granted.saturating_duration_since(this.start);
                            State::Failed(waiting.failed(answer, waited))
                        }
                    };
                }
                State::Sent(lease) => {
                    let result = ready!(cost::inner(|| lease.poll_answer(cx)));
                    let State::Sent(lease) = mem::replace(&mut this.state, State::Done) else {
                        unreachable!("it was sent");
                    };
                    match result {
                        Ok(response) => return Poll::Ready(Ok(this.answered(lease, response))),
                        Err(mut error) => {
                            let connection = lease.connection.clone();
                            let unsent = error.take_message();
                            let error = error.into_error();
                            match unsent {
                                Some(req) => {
                                    lease.refused();
                                    this.state = this.again(&connection, req, Some(error));
                                }
                                None => {
                                    drop(lease);
                                    let now = clock::now();
                                    let waited = now.saturating_duration_since(this.start);
                                    let host = connection.host();
                                    return Poll::Ready(Err(Error::send(
                                        host, waited, true, error,
                                    )));
                                }
                            }
                        }
                    }
                }
                State::Failed(_) => {
                    let State::Failed(error) = mem::replace(&mut this.state, State::Done) else {
                        unreachable!("it failed");
                    };
                    return Poll::Ready(Err(error));
                }
                State::Done => panic!("polled after it was ready"),
            }
        }
    }
}

impl<B: Send + 'static> Waiting<B> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(core::Answer, Option<Arc<Connection<B>>>)> {
        // Cloned and dropped outside the lock: it is foreign code.
        let mut waker = cx.waker().clone();
        let mut locked = self.shared.lock();
        let answer = ready!(locked.core.poll(self.waiter, &mut waker));
        let connection = match &answer {
            core::Answer::Granted(grant) => locked.connection(grant.conn),
            _ => None,
        };
        Poll::Ready((answer, connection))
    }

    fn failed(&self, answer: core::Answer, waited: Duration) -> Error {
        let host = self.host.clone();
        match answer {
            core::Answer::Failed(cause) => Error::connect(host, waited, cause),
            core::Answer::TimedOut { dial, open, total } => {
                let dial = dial.and_then(|conn| self.shared.connection(conn));
                let phase = dial.map(|dial| dial.dial.phase().unwrap_or(Phase::Connect));
                let phase = phase.unwrap_or(Phase::Wait);
                let limits = self.shared.lock().core.limits.clone();
                let of_host = (open, limits.per_host);
                let of_all = (total, limits.connections);
                Error::acquire_timeout(host, waited, phase, of_host, of_all)
            }
            _ => Error::closed(host, waited),
        }
    }
}

/// Leaves the queue; what was granted and not taken goes to the next.
impl<B: Send + 'static> Drop for Waiting<B> {
    fn drop(&mut self) {
        if self.req.is_some() {
            let now = clock::now();
            drop(self.shared.event(|core| core.cancel(now, self.waiter)));
        }
    }
}

impl<B: Send + 'static> fmt::Debug for ResponseFuture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Waiting(_) => "waiting",
            State::Sent(_) => "sent",
            State::Failed(_) => "failed",
            State::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
