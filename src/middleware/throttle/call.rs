use super::backend::{Backend, Cell, Place, State};
use super::pushback::{Asked, Pushback};
use crate::base::clock::{self, Instant};
use crate::base::error::Rejection;
use crate::base::outcome::Code;
use crate::base::stats::Lease;

/// One call that was let through. It ends as dropped unless somebody says what the backend did with it.
#[derive(Debug)]
pub(super) struct Call {
    state: Lease<State>,
    place: Place,
    counted: bool,
}

impl Call {
    /// Lets a call to `backend` through, or not. `critical` says whether it is refused by two draws only.
    #[inline]
    pub(super) fn start(
        state: &Lease<State>,
        backend: Option<&str>,
        critical: impl FnOnce() -> bool,
    ) -> Result<Self, Rejection> {
        let place = state.place(backend);
        let at = state.at(clock::now());
        if !state.lets_through(&place, at, critical) {
            state.ledger(&place).add(Cell::Throttled);
            return Err(state.rejection(&place, backend, at));
        }
        state.ledger(&place).begin();
        Ok(Self {
            state: state.clone(),
            place,
            counted: false,
        })
    }

    /// Whether the backend is known to have taken or refused it.
    #[inline]
    pub(super) fn counted(&self) -> bool {
        self.counted
    }

    /// Whether `code` is a refusal of the backend's.
    #[inline]
    pub(super) fn refused_by(&self, code: Code) -> bool {
        self.state.settings.refusals.has(code)
    }

    /// The backend has given some answer: its name may become one.
    #[inline]
    pub(super) fn learn(&mut self) {
        if let Place::Other(name) = &mut self.place
            && let Some(name) = name.take()
            && let Some(place) = self.state.admit(&name)
        {
            let known = Place::Known(place);
            let state = &self.state;
            state.ledger(&self.place).hand_over(state.ledger(&known));
            self.place = known;
        }
    }

    /// The backend works on it, whatever comes of that.
    #[inline]
    pub(super) fn taken(&mut self) {
        self.count(Cell::Accepted);
    }

    /// The call came to `code`, and the backend `asked` something with it.
    #[inline]
    pub(super) fn end(&mut self, code: Code, asked: Asked, now: impl FnOnce() -> Instant) {
        let refused = self.refused_by(code);
        // Somebody gave up, which says nothing about the backend.
        if code != Code::Cancelled {
            self.count(if refused {
                Cell::Refused
            } else {
                Cell::Accepted
            });
        }
        let ledger = self.state.ledger(&self.place);
        if refused || asked.pushback == Some(Pushback::Never) {
            ledger.tokens.fail();
        } else if code == Code::Ok {
            ledger.tokens.succeed();
        }
        if asked != Asked::default() {
            self.state.push(ledger, asked, now);
        }
    }

    #[inline]
    fn count(&mut self, cell: Cell) {
        if !self.counted {
            self.counted = true;
            self.state.ledger(&self.place).answer(cell);
        }
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        self.count(Cell::Dropped);
    }
}

/// Names the backend of an HTTP request: as `backend` does, else by authority.
#[inline]
pub(super) fn backend_of<'a, B>(
    backend: &impl Backend<http::Request<B>>,
    req: &'a http::Request<B>,
) -> Option<&'a str> {
    backend.of(req).or_else(|| authority(req))
}

/// Host and port, without the user's name and password, which belong into no label.
fn authority<B>(req: &http::Request<B>) -> Option<&str> {
    let authority = match req.uri().authority() {
        Some(authority) => authority.as_str(),
        None => req.headers().get(http::header::HOST)?.to_str().ok()?,
    };
    authority.rsplit('@').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_named_without_its_user() {
        let named = |uri: &str, host: Option<&str>| {
            let mut req = http::Request::get(uri).body(()).unwrap();
            if let Some(host) = host {
                req.headers_mut().insert("host", host.parse().unwrap());
            }
            authority(&req).map(str::to_owned)
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(
            named("http://a.test:80/x", Some("b.test")),
            some("a.test:80")
        );
        assert_eq!(named("http://me:secret@a.test/", None), some("a.test"));
        assert_eq!(named("/x", Some("b.test:81")), some("b.test:81"));
        assert_eq!(named("/x", None), None);
    }
}
