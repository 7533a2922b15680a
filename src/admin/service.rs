use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use tower_service::Service;

use super::access::{Access, Caller, HostError, Site};
use super::body::AdminBody;
use super::link::Link;
use super::live::Hub;
use super::path::{self, Answer, Page, Profiles, refused};
use super::read;
use crate::base::flow::Flow;

/// The live endpoint as a tower service. It never fails.
///
/// Nested in a router under a prefix it finds its paths when the router takes the prefix off; open the page with a
/// slash at the end then. Without the endpoint's own server round it, nobody limits connections or how long they last,
/// nobody knows who is on this machine (so profiles want a token), and while somebody listens to `/events` a task of
/// its own looks at the layers: it begins with the first listener and ends with the last, and so does the history.
#[derive(Debug, Clone)]
pub struct AdminService(Arc<Shared>);

/// What all clones share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) flow: Flow,
    pub(super) access: Access,
    pub(super) hub: Arc<Hub>,
    pub(super) profiles: Profiles,
}

/// A request that may be answered.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) caller: Caller,
    /// It has the token.
    pub(super) trusted: bool,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    /// What of the path is not the page's own.
    pub(super) rest: String,
    pub(super) query: String,
    pub(super) link: Option<Arc<Link>>,
    pub(super) body: Bytes,
}

/// The answer to come.
#[must_use = "it does nothing unless polled"]
pub struct AdminFuture(State);

enum State {
    Ready(Option<Response<AdminBody>>),
    Later(Pin<Box<dyn Future<Output = Response<AdminBody>> + Send>>),
}

/// What a page may do, and be part of, unless it says otherwise: nothing.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

// ===== impl AdminService =====

impl AdminService {
    pub(super) fn new(flow: Flow, access: Access, max_events: usize) -> Self {
        Self(Arc::new(Shared {
            hub: Hub::new(flow.clone(), max_events),
            flow,
            access,
            profiles: Profiles::default(),
        }))
    }

    pub(super) fn hub(&self) -> Arc<Hub> {
        self.0.hub.clone()
    }

    #[cfg(test)]
    pub(super) fn set_profiles(&mut self, profiles: Profiles) {
        let shared = Arc::get_mut(&mut self.0);
        shared.expect("it has no clones yet").profiles = profiles;
    }
}

impl Shared {
    /// The page that is asked for, unless it may not be.
    fn page(&self, req: &Parts) -> Result<(&'static Page, Ask), Box<Response<AdminBody>>> {
        let caller = self
            .access
            .caller(req)
            .map_err(|error| Box::new(misnamed(error)))?;
        let wanted = req.uri.path();
        let Some((page, rest)) = path::find(wanted) else {
            let known = path::all().collect::<Vec<_>>().join(", ");
            let message = format!("there is no such path here; there are {known}\n");
            return Err(refused(StatusCode::NOT_FOUND, message).into());
        };
        if !page.allow.split(", ").any(|method| req.method == method) {
            let message = format!("only {} is answered here\n", page.allow);
            let mut refused = refused(StatusCode::METHOD_NOT_ALLOWED, message);
            refused
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static(page.allow));
            return Err(refused.into());
        }
        let trusted = caller.trusted(page.own);
        if self.access.private && !page.open && !trusted {
            return Err(untrusted().into());
        }
        if page.own && caller.site == Site::Other {
            let message =
                "a page of another site asks for this; nothing but this endpoint's own may\n";
            return Err(refused(StatusCode::FORBIDDEN, message).into());
        }
        let ask = Ask {
            caller,
            trusted,
            method: req.method.clone(),
            headers: req.headers.clone(),
            rest: rest.to_owned(),
            query: req.uri.query().unwrap_or_default().to_owned(),
            link: req.extensions.get().cloned(),
            body: Bytes::new(),
        };
        Ok((page, ask))
    }
}

/// The answer to who lacks the token.
pub(super) fn untrusted() -> Response<AdminBody> {
    let message = "this wants the token: as Authorization: Bearer, or POST it to /session\n";
    let mut refused = refused(StatusCode::UNAUTHORIZED, message);
    refused.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Bearer realm=\"tower-flow\""),
    );
    refused
}

fn misnamed(error: HostError) -> Response<AdminBody> {
    match error {
        HostError::Missing => refused(StatusCode::BAD_REQUEST, "the request names no host\n"),
        HostError::Malformed => refused(
            StatusCode::BAD_REQUEST,
            "the request's host is not well-formed\n",
        ),
        HostError::Foreign => refused(
            StatusCode::MISDIRECTED_REQUEST,
            "this endpoint does not answer to that name; use an address or localhost, or allow the name by Admin::host\n",
        ),
    }
}

/// What every answer says to browsers.
fn seal(mut response: Response<AdminBody>) -> Response<AdminBody> {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Its own requests say where they come from; to other sites they do not.
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("same-origin"),
    );
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(POLICY);
    response
}

impl<B> Service<Request<B>> for AdminService
where
    B: Body<Data: Send> + Send + 'static,
{
    type Response = Response<AdminBody>;
    type Error = Infallible;
    type Future = AdminFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, req: Request<B>) -> AdminFuture {
        let (parts, body) = req.into_parts();
        let (page, mut ask) = match self.0.page(&parts) {
            Ok(found) => found,
            Err(refused) => return AdminFuture(State::Ready(Some(seal(*refused)))),
        };
        if !matches!(parts.method, Method::PUT | Method::POST) {
            return AdminFuture(match (page.answer)(&self.0, ask) {
                Answer::Now(response) => State::Ready(Some(seal(response))),
                Answer::Later(response) => State::Later(Box::pin(async { seal(response.await) })),
            });
        }
        let shared = self.0.clone();
        AdminFuture(State::Later(Box::pin(async move {
            ask.body = match read::body(body).await {
                Ok(body) => body,
                Err((status, message)) => return seal(refused(status, message)),
            };
            seal(match (page.answer)(&shared, ask) {
                Answer::Now(response) => response,
                Answer::Later(response) => response.await,
            })
        })))
    }
}

// ===== impl AdminFuture =====

impl Future for AdminFuture {
    type Output = Result<Response<AdminBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Ready(response) => {
                let response = response.take();
                Poll::Ready(Ok(response.expect("polled after it was ready")))
            }
            State::Later(response) => response.as_mut().poll(cx).map(Ok),
        }
    }
}

impl fmt::Debug for AdminFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::inspect::{HotPath, Inspect, Knob, Value};
    use crate::base::metrics::{Families, Kind, Labels};
    use http_body_util::{BodyExt, Full};
    use std::borrow::Cow;

    /// A layer that panics where it is told to.
    #[derive(Debug)]
    struct Faulty(&'static str);

    impl Faulty {
        fn at(&self, place: &str) {
            assert_ne!(self.0, place, "a layer's fault takes nothing else with it");
        }
    }

    impl Inspect for Faulty {
        fn kind(&self) -> &'static str {
            self.at("kind");
            "faulty"
        }

        fn name(&self) -> Cow<'_, str> {
            self.at("name");
            self.0.into()
        }

        fn snapshot(&self) -> Value {
            self.at("snapshot");
            Value::Null
        }

        fn collect(&self, families: &mut Families) {
            let family = families.family(Kind::Gauge, "faulty", "Which there are");
            family.push(Labels::new().with("at", self.0), 1u64);
            self.at("collect");
        }

        fn knobs(&self) -> Vec<Knob> {
            self.at("knobs");
            vec![Knob::new("knob", "Does nothing", true)]
        }

        fn turn(&self, _: &str, _: &Value) -> Result<(), crate::BoxError> {
            self.at("turn");
            Ok(())
        }

        fn hot(&self) -> Vec<HotPath> {
            self.at("hot");
            Vec::new()
        }

        fn interval_log(&self, _: &str, _: &mut dyn std::io::Write) -> std::io::Result<()> {
            self.at("interval_log");
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_layer_that_panics_takes_no_path_with_it() {
        const PLACES: [&str; 8] = [
            "kind",
            "name",
            "snapshot",
            "collect",
            "knobs",
            "turn",
            "hot",
            "interval_log",
        ];
        let flow = Flow::new("orders");
        for place in PLACES {
            flow.attach(Faulty(place));
        }
        let token = "0123456789abcdef";
        let service = flow.admin().token(token).service();
        let ask = async |line: &str| {
            let (method, path) = line.split_once(' ').unwrap();
            let req = Request::builder()
                .method(method)
                .uri(format!("http://localhost{path}"))
                .header("authorization", format!("Bearer {token}"))
                .header("content-type", "application/json");
            let req = req.body(Full::<Bytes>::from("true")).unwrap();
            let response = service.clone().call(req).await.unwrap();
            let status = response.status().as_u16();
            let mut body = response.into_body();
            let frame = body.frame().await.map(|frame| frame.unwrap());
            let bytes = frame.and_then(|frame| frame.into_data().ok());
            let text = String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
            (status, text)
        };
        let (status, metrics) = ask("GET /metrics").await;
        let shown = |at: &&&str| metrics.contains(&format!("{{at=\"{at}\"}}"));
        assert_eq!((status, PLACES.iter().filter(shown).count()), (200, 7));
        let (status, snapshot) = ask("GET /snapshot.json").await;
        let snapshot: serde_json::Value = serde_json::from_str(&snapshot).unwrap();
        let ids = snapshot["layers"].as_array().unwrap().iter();
        let ids: Vec<_> = ids.map(|layer| layer["id"].as_u64().unwrap()).collect();
        assert_eq!((status, &*ids), (200, &[3, 5, 6, 7][..]));
        assert_eq!(ask("GET /debug/hot").await.0, 200);
        let (status, state) = ask("GET /events").await;
        assert_eq!((status, state.matches("\"tables\":").count()), (200, 8));
        assert_eq!(ask("PUT /knobs/0/knob").await.0, 204);
        let panicked = (500, "the layer panicked\n".to_owned());
        assert_eq!(ask("PUT /knobs/5/knob").await, panicked);
        assert_eq!(ask("GET /hdr/x.log").await.0, 200);
        assert_eq!(ask("GET /hdr/x.log?layer=7").await.0, 500);
    }
}
