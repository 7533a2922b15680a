//! The live endpoint: a page to watch and steer a program by, and all that it shows for other programs to read.
//!
//! # How it works
//!
//! It reads what is attached to a [`Flow`], through [`Inspect`](crate::inspect::Inspect) and nothing else: it knows no
//! layer by name. While the endpoint runs, a task looks once a second at every layer's
//! [`vitals`](crate::inspect::Inspect::vitals) and keeps five minutes of what it makes of them, so that a page that is
//! opened later shows what went before. While somebody listens to `/events` it makes one update a second, the same for
//! all who do.
//!
//! # Example
//!
//! ```
//! use tower_flow::Flow;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let flow = Flow::new("orders");
//! let server = flow.admin().bind("127.0.0.1:0".parse()?).await?;
//! println!("live on http://{}/", server.local_addr());
//! tokio::spawn(server.run());
//! # Ok(()) }
//! ```
//!
//! With a token the page can turn knobs: open it with `#token=…` at the end of its address.
//!
//! ```no_run
//! use tower_flow::Flow;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let flow = Flow::new("orders");
//! flow.admin()
//!     .token(std::env::var("ADMIN_TOKEN")?)
//!     .host("orders.internal")
//!     .allow_remote()
//!     .private()
//!     .serve("0.0.0.0:9090".parse()?)
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! [`Admin::serve`] binds and runs in one call; [`Admin::service`] is the same as a tower service, to nest in a router.
//!
//! # Paths
//!
//! | path | answer |
//! |---|---|
//! | `/` | the page; it loads `/page.css` and `/page.js`, and nothing from elsewhere |
//! | `/events` | the numbers once a second, as server-sent events, for the page: their form may change |
//! | `/metrics` | all metrics, in the format the scraper likes best ([`Format::negotiate`](crate::metrics::Format)) |
//! | `/snapshot.json` | all layers as JSON, as below |
//! | `/debug/hot` | where the time went, a table of all layers' [`hot`](crate::inspect::Inspect::hot) paths; `?format=json` |
//! | `/debug/profile` | samples the process: `?seconds=` 1 to 60 (10), `&hz=` 1 to 999 (99), `&format=` `svg`, `folded` or `pb` |
//! | `/hdr/<route>.log` | a route's window as an HdrHistogram interval log; `?layer=` picks one of several layers |
//! | `PUT /knobs/<layer>/<name>` | sets a [knob](crate::inspect::Knob) of the layer of that `id` to a JSON scalar |
//! | `POST`, `DELETE /session` | gives a browser a cookie for the token in the body, or takes it away |
//! | `/healthz` | `ok`, as long as the process answers |
//!
//! Unknown paths are 404, other methods 405; both say what there is. Every refusal is one line of text; only what is no
//! HTTP, or too large for it, is refused without a word (400, 431).
//!
//! # The snapshot
//!
//! ```json
//! {"service": "orders", "version": "0.1.0", "uptime": 12.5,
//!  "layers": [
//!    {"id": 0, "kind": "shed", "name": "api",
//!     "knobs": [{"name": "limit", "help": "…", "value": null}],
//!     "overhead": {"per_call": 2.1e-7, "sampled": 1024, "inside": null},
//!     "state": {"limit": 64, "…": 0}}]}
//! ```
//!
//! | key | is |
//! |---|---|
//! | `uptime` | since the [`Flow`] was made |
//! | `layers` | in the order they were attached |
//! | `id` | the layer's place among them, as in `/knobs/<layer>/…` |
//! | `kind`, `name` | the feature, and which one of its kind |
//! | `knobs` | what can be turned; `value` is null, a flag, a number or text |
//! | `overhead` | what a call of the layer costs ([`Flow::overhead`]), null where that is not known |
//! | `state` | the layer's own [`snapshot`](crate::inspect::Inspect::snapshot), documented there |
//!
//! Times are seconds, ratios lie within 0 and 1, what is not known is null. Keys are kept from release to release; new
//! ones may come. `<`, `>` and `&` in names are escaped.
//!
//! # Security
//!
//! - It binds loopback addresses only, unless [`allow_remote`](Admin::allow_remote) is called. Whoever reaches it reads
//!   all of it, unless it is [`private`](Admin::private).
//! - Knobs are turned by who has the [`token`](Admin::token), in `Authorization: Bearer` or in the cookie of `/session`,
//!   which no script can read (`HttpOnly`), and which browsers send for no other site (`SameSite=Strict`). Without a
//!   token nobody turns any. Tokens are compared in constant time and never printed.
//! - Profiles are for who has the token. Without one they are for clients on this machine, when the endpoint is bound to
//!   loopback.
//! - It answers to addresses, `localhost` and [names it was given](Admin::host), else 421: a site that gives its own
//!   name this machine's address (DNS rebinding) reads nothing.
//! - What does something (`/knobs`, `/session`, `/debug/profile`, `/events`) is refused to pages of other sites (403), by
//!   `Origin` and `Sec-Fetch-Site`, and where there is neither by `Referer`. There the cookie counts only when one of
//!   them says that the page is this endpoint's own. Browsers send the first two to loopback and by TLS; of what only
//!   reads from a [name](Admin::host) without TLS they say nothing but `Referer`, and another site's page can have that
//!   left out: it can then listen to `/events` unseen, though not read them, and on the same machine as an endpoint
//!   without a token have profiles taken that it cannot read. `private` ends the one, a token the other.
//! - A page that came by TLS is its own when it has the same name and port, for there may be a proxy between: what is at
//!   port 80 of a name believes what is at its port 443.
//! - No answer may be framed, cached, sniffed or embedded elsewhere. The page runs its own script and no other; names of
//!   routes are text, never markup. A flame graph has a script of its own and is sandboxed away from the endpoint.
//! - Other services on the same host see the cookie, since browsers do not keep ports apart.
//! - Nothing is encrypted. Put a proxy with TLS before what is remote; it has to pass `Host` on.
//!
//! # Limits
//!
//! A connection carries one request, whose headers may take 5 seconds and 16 KiB, its body 5 seconds and 4 KiB, and ends
//! after 15 seconds. At most 64 are open at a time; for a further one the oldest is closed, when it has had 100 ms. So
//! nobody holds the endpoint by being slow, large or many.
//!
//! Connections of `/events` and `/debug/profile` last as long as they take and are counted apart. At most
//! [`max_events`](Admin::max_events) clients listen, others are told to come back (503). One whose
//! socket takes nothing for 10 seconds is put out, one that reads slowly is not, and misses updates. What is sent first
//! fills what the kernels of both ends hold, some 200 KB: a client that reads nothing at all keeps its place until
//! then, ten seconds when updates are large and minutes when they are small. One profile is taken at a time; for a
//! second the answer is 409.
//!
//! The page shows at most 96 measures, 64 rows of a table, the busiest first, and 120 characters of a name. An update has
//! at most 20 KB: it has the first rows of as many tables as it can, and those that found no room come with the next.
//!
//! # Cancellation
//!
//! Dropping the future of `serve` or `run` closes the listener and every connection, and ends the task that looks. A
//! profile whose client goes away ends, also when that has sent more than its request.
//!
//! # Cost
//!
//! Without listeners a look at every layer's vitals each second. With them also a snapshot of each layer that has
//! tables, and one update for all; `cargo bench --features full --bench admin` measures both.

mod access;
mod body;
mod link;
mod live;
mod path;
mod query;
mod read;
mod scalar;
mod serve;
mod service;
mod socket;

use std::fmt;
use std::io;
use std::net::SocketAddr;

use access::{Access, Token};

use crate::base::flow::Flow;

pub use body::AdminBody;
pub use serve::AdminServer;
pub use service::{AdminFuture, AdminService};

/// The live endpoint of a [`Flow`], made by [`Flow::admin`]; see [the module](crate::admin).
#[derive(Debug, Clone)]
#[must_use = "serve it, bind it, or nest its service"]
pub struct Admin {
    flow: Flow,
    remote: bool,
    access: Access,
    max_events: usize,
}

/// Why the endpoint is not served.
#[derive(Debug)]
#[non_exhaustive]
pub enum AdminError {
    /// The address is not of this machine's loopback, and remote access was not allowed.
    NotLoopback(SocketAddr),
    /// The address could not be bound.
    Bind(SocketAddr, io::Error),
}

impl Flow {
    /// The live endpoint.
    pub fn admin(&self) -> Admin {
        Admin {
            flow: self.clone(),
            remote: false,
            access: Access::default(),
            max_events: 128,
        }
    }
}

impl Admin {
    /// Loopback only (default), or any address. Let nobody reach it whom the numbers do not concern, or set a
    /// [`token`](Self::token) and make it [`private`](Self::private); what travels is not encrypted.
    pub fn allow_remote(mut self) -> Self {
        self.remote = true;
        self
    }

    /// No token (default): knobs are only shown, and profiles are for this machine. With one, whoever has it may turn
    /// knobs and take profiles: as `Authorization: Bearer …`, or in the cookie that the page gets for it.
    ///
    /// Take at least 16 random characters, from the environment or a file, never from the source.
    ///
    /// # Panics
    ///
    /// When it is shorter than 16 characters or longer than 512, or has some that a cookie cannot have: others than
    /// visible ASCII, quotes, commas, semicolons, backslashes.
    pub fn token(mut self, token: impl AsRef<str>) -> Self {
        self.access.token = Some(Token::new(token.as_ref()));
        self
    }

    /// All may read (default), or only those with the [`token`](Self::token); without a token nobody then. `/healthz`,
    /// and the page before it is unlocked, which tells nothing, are for all.
    pub fn private(mut self) -> Self {
        self.access.private = true;
        self
    }

    /// Answers to addresses, `localhost` and what ends in `.localhost` (default), and to this name too: that of the
    /// machine, when it is reached by it. Call it once for each.
    ///
    /// # Panics
    ///
    /// When it is no host name: it has neither scheme nor port.
    pub fn host(mut self, name: impl AsRef<str>) -> Self {
        self.access.name(name.as_ref());
        self
    }

    /// At most 128 (default) clients of `/events` at a time; others are told to come back. With 0 there is no live
    /// page.
    pub fn max_events(mut self, max: usize) -> Self {
        self.max_events = max;
        self
    }

    /// The endpoint as a tower service, for a server of one's own. Clones share their clients of `/events`; one made by
    /// another call does not.
    pub fn service(&self) -> AdminService {
        AdminService::new(self.flow.clone(), self.access.clone(), self.max_events)
    }

    /// Binds `addr`; port 0 takes any free one.
    ///
    /// # Errors
    ///
    /// When the address is not loopback or cannot be bound.
    pub async fn bind(self, addr: SocketAddr) -> Result<AdminServer, AdminError> {
        if !self.remote && !addr.ip().is_loopback() {
            return Err(AdminError::NotLoopback(addr));
        }
        AdminServer::bind(addr, self.service()).map_err(|error| AdminError::Bind(addr, error))
    }

    /// Binds `addr` and serves until the future is dropped.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    pub async fn serve(self, addr: SocketAddr) -> Result<(), AdminError> {
        self.bind(addr).await?.run().await;
        Ok(())
    }
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLoopback(addr) => write!(
                f,
                "{addr} is no loopback address; bind 127.0.0.1 or call allow_remote if whoever reaches it may read all"
            ),
            Self::Bind(addr, error) => {
                write!(
                    f,
                    "cannot bind {addr}: {error}; choose another port, or 0 for any free one"
                )
            }
        }
    }
}

impl std::error::Error for AdminError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotLoopback(_) => None,
            Self::Bind(_, error) => Some(error),
        }
    }
}
