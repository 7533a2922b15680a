use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::{Answer, Page, answer, refused};
use crate::admin::access::Site;
use crate::admin::body::AdminBody;
use crate::admin::query;
use crate::admin::service::{Ask, Shared, untrusted};
#[cfg(feature = "perf")]
use crate::profile::{Profile, ProfilerError};

/// Samples what the process does for a while.
pub(super) const PAGE: Page = Page {
    allow: "GET",
    own: true,
    ..Page::get("/debug/profile", |shared, ask| {
        if let Some(refused) = refusal(shared, &ask) {
            return refused.into();
        }
        let order = match Order::of(&ask.query) {
            Ok(order) => order,
            Err(message) => return refused(StatusCode::BAD_REQUEST, message).into(),
        };
        let Some(turn) = shared.profiles.turn() else {
            let message = "somebody takes a profile already; come back when it is done\n";
            return refused(StatusCode::CONFLICT, message).into();
        };
        // It may take longer than an ordinary answer.
        let held = ask.link.as_ref().map(|link| link.hold());
        let taken = shared.profiles.source.take(order);
        Answer::Later(Box::pin(async move {
            let taken = taken.await;
            drop((turn, held));
            match taken {
                Ok(profile) => shown(order, profile),
                Err((status, message)) => refused(status, message),
            }
        }))
    })
};

/// Why this caller gets none. A profile shows what runs, and taking one costs: with a token it is for who has it,
/// without for this machine.
pub(super) fn refusal(shared: &Shared, ask: &Ask) -> Option<Response<AdminBody>> {
    let local = ask.link.as_ref().is_some_and(|link| link.local);
    // A browser that does not say which page asks: any may.
    let hidden = ask.caller.browser && ask.caller.site == Site::Unsaid;
    match (&shared.access.token, ask.trusted) {
        (Some(_), true) => None,
        (Some(_), false) => Some(untrusted()),
        (None, _) if local && !hidden => None,
        (None, _) => {
            let message = "profiles are for loopback, or for who has the token; give the endpoint one by Admin::token\n";
            Some(refused(StatusCode::FORBIDDEN, message))
        }
    }
}

/// What profile is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) duration: Duration,
    pub(super) hz: u32,
    pub(super) format: Format,
}

/// How it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Svg,
    Folded,
    Pprof,
}

impl Order {
    fn of(text: &str) -> Result<Self, &'static str> {
        const BOUNDS: &str = "seconds is 1 to 60 (10), hz is 1 to 999 (99), format is svg (as without), folded or pb, \
                              each at most once\n";
        let (mut seconds, mut hz, mut format) = (None, None, None);
        for (key, value) in query::pairs(text).ok_or(BOUNDS)? {
            let number = || match value.bytes().all(|byte| byte.is_ascii_digit()) {
                true => value.parse::<u32>().map_err(|_| BOUNDS),
                false => Err(BOUNDS),
            };
            let twice = match key.as_str() {
                "seconds" => seconds.replace(number()?).is_some(),
                "hz" => hz.replace(number()?).is_some(),
                "format" => {
                    let named = match value.as_str() {
                        "svg" => Format::Svg,
                        "folded" => Format::Folded,
                        "pb" => Format::Pprof,
                        _ => return Err(BOUNDS),
                    };
                    format.replace(named).is_some()
                }
                _ => true,
            };
            if twice {
                return Err(BOUNDS);
            }
        }
        let (seconds, hz) = (seconds.unwrap_or(10), hz.unwrap_or(99));
        if !(1..=60).contains(&seconds) || !(1..=999).contains(&hz) {
            return Err(BOUNDS);
        }
        Ok(Self {
            duration: Duration::from_secs(seconds.into()),
            hz,
            format: format.unwrap_or(Format::Svg),
        })
    }
}

fn shown(order: Order, profile: Bytes) -> Response<AdminBody> {
    match order.format {
        Format::Folded => answer("text/plain; charset=utf-8", profile),
        Format::Pprof => {
            let mut response = answer("application/octet-stream", profile);
            response.headers_mut().insert(
                header::CONTENT_DISPOSITION,
                HeaderValue::from_static("attachment; filename=\"profile.pb\""),
            );
            response
        }
        Format::Svg => {
            let mut response = answer("image/svg+xml", profile);
            // It has a script of its own, which is to reach nothing of this endpoint.
            response.headers_mut().insert(
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static(
                    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; \
                     style-src 'unsafe-inline'; frame-ancestors 'none'",
                ),
            );
            response
        }
    }
}

/// A profile to come, or why there is none.
type Taken = Pin<Box<dyn Future<Output = Result<Bytes, (StatusCode, String)>> + Send>>;

/// What takes profiles.
trait Source: Send + Sync {
    fn take(&self, order: Order) -> Taken;
}

/// All profiles of an endpoint: one at a time.
pub(in crate::admin) struct Profiles {
    source: Box<dyn Source>,
    taking: Arc<AtomicBool>,
}

/// Its turn; over when it is dropped.
struct Turn(Arc<AtomicBool>);

impl Profiles {
    fn turn(&self) -> Option<Turn> {
        let taken = self.taking.swap(true, Ordering::Acquire);
        // Nothing is made before it is known that it is to be: dropping it ends the turn.
        (!taken).then(|| Turn(self.taking.clone()))
    }
}

impl Default for Profiles {
    fn default() -> Self {
        Self {
            source: Box::new(Sampling),
            taking: Arc::default(),
        }
    }
}

impl fmt::Debug for Profiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profiles")
            .field("taking", &self.taking)
            .finish_non_exhaustive()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Pairs with the swap of the next.
        self.0.store(false, Ordering::Release);
    }
}

/// The profiler, where it is built in.
struct Sampling;

#[cfg(feature = "perf")]
impl Source for Sampling {
    fn take(&self, order: Order) -> Taken {
        Box::pin(async move {
            let taken = Profile::take(order.duration, order.hz).await;
            let profile = taken.map_err(|error| (status_of(&error), format!("{error}\n")))?;
            // Drawing takes a while, and the runtime has other things to do.
            let drawn = tokio::task::spawn_blocking(move || match order.format {
                Format::Svg => profile.svg().into(),
                Format::Folded => profile.folded().into(),
                Format::Pprof => profile.pprof().into(),
            });
            drawn.await.map_err(|_| {
                let message = "the profile was taken and could not be drawn\n".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, message)
            })
        })
    }
}

#[cfg(feature = "perf")]
fn status_of(error: &ProfilerError) -> StatusCode {
    match error {
        ProfilerError::Busy => StatusCode::CONFLICT,
        ProfilerError::Rate(_) | ProfilerError::Length(_) => StatusCode::BAD_REQUEST,
        ProfilerError::Denied { .. } | ProfilerError::Unsupported => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(not(feature = "perf"))]
impl Source for Sampling {
    fn take(&self, _: Order) -> Taken {
        let message = "this build takes no profiles; tower-flow's feature `perf` does\n".to_owned();
        Box::pin(async { Err((StatusCode::NOT_IMPLEMENTED, message)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::AdminServer;
    use crate::admin::link::Link;
    use crate::base::flow::Flow;
    use http::Request;
    use http_body_util::{BodyExt, Empty};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;
    use tokio::sync::Semaphore;
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
    use tokio_test::task;
    use tower_service::Service;

    /// Takes a profile for as long as nobody opens the gate.
    struct Gated(Arc<Semaphore>);

    impl Source for Gated {
        fn take(&self, order: Order) -> Taken {
            let gate = self.0.clone();
            Box::pin(async move {
                let _open = gate.acquire().await;
                Ok(format!("{order:?}").into())
            })
        }
    }

    /// Tells when a profile begins, and when nobody waits for it any more.
    struct Told(UnboundedSender<&'static str>);

    struct Over(UnboundedSender<&'static str>);

    impl Drop for Over {
        fn drop(&mut self) {
            let _ = self.0.send("over");
        }
    }

    impl Source for Told {
        fn take(&self, _: Order) -> Taken {
            let (tell, over) = (self.0.clone(), Over(self.0.clone()));
            Box::pin(async move {
                let _over = over;
                let _ = tell.send("begun");
                std::future::pending().await
            })
        }
    }

    #[tokio::test]
    async fn it_ends_with_its_client_whatever_that_has_sent() {
        let (tell, mut told) = unbounded_channel();
        let mut service = Flow::new("orders").admin().service();
        service.set_profiles(Profiles {
            source: Box::new(Told(tell)),
            taking: Arc::default(),
        });
        let server = AdminServer::bind("127.0.0.1:0".parse().unwrap(), service).unwrap();
        let addr = server.local_addr();
        let running = tokio::spawn(server.run());
        let mut told = async || {
            let told = tokio::time::timeout(Duration::from_secs(10), told.recv());
            told.await.expect("in time").expect("it is told")
        };
        for more in ["", "\r\n", "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
            let mut client = TcpStream::connect(addr).await.unwrap();
            let asked = "GET /debug/profile HTTP/1.1\r\nhost: localhost\r\n\r\n";
            client.write_all(asked.as_bytes()).await.unwrap();
            client.write_all(more.as_bytes()).await.unwrap();
            assert_eq!(told().await, "begun");
            // What comes later ends nothing.
            client.write_all(more.as_bytes()).await.unwrap();
            drop(client);
            assert_eq!(told().await, "over", "{more:?}");
        }
        running.abort();
    }

    #[tokio::test]
    async fn one_is_taken_at_a_time() {
        let gate = Arc::new(Semaphore::new(0));
        let mut service = Flow::new("orders").admin().service();
        service.set_profiles(Profiles {
            source: Box::new(Gated(gate.clone())),
            taking: Arc::default(),
        });
        let link = Link::new(true);
        let ask = |query: &str| {
            let mut service = service.clone();
            let mut req = Request::get(format!("http://localhost/debug/profile?{query}"))
                .body(Empty::<Bytes>::new())
                .unwrap();
            req.extensions_mut().insert(link.clone());
            async move { service.call(req).await.unwrap() }
        };
        let mut first = task::spawn(ask("seconds=60&hz=1&format=folded"));
        assert!(first.poll().is_pending());
        assert!(link.is_held(), "it may take its time");
        assert_eq!(ask("").await.status(), StatusCode::CONFLICT);
        // Whoever goes away takes no more of it.
        drop(first);
        assert!(!link.is_held());
        let mut second = task::spawn(ask("seconds=5"));
        assert!(second.poll().is_pending());
        gate.add_permits(1);
        let taken = second.await;
        assert_eq!(taken.headers()["content-type"], "image/svg+xml");
        let policy = taken.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("sandbox allow-scripts; default-src 'none'"));
        let shown = taken.into_body().collect().await.unwrap().to_bytes();
        let order = Order {
            duration: Duration::from_secs(5),
            hz: 99,
            format: Format::Svg,
        };
        assert_eq!(shown, format!("{order:?}"));
        let pprof = ask("format=pb&hz=999").await;
        assert_eq!(pprof.headers()["content-type"], "application/octet-stream");
    }
}
