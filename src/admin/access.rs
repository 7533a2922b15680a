//! Who may ask for what.

mod host;
mod origin;
mod token;

use http::request::Parts;

pub(super) use host::HostError;
pub(super) use origin::Site;
pub(super) use token::Token;

/// What an endpoint lets pass.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    pub(super) token: Option<Token>,
    /// Nothing is shown without the token.
    pub(super) private: bool,
    /// Names it answers to besides this machine's own.
    names: Vec<String>,
}

/// Who asks, as far as headers say.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// What it calls the endpoint.
    pub(super) host: String,
    /// It says the token.
    pub(super) bearer: bool,
    /// Its browser does, whatever page is behind it.
    pub(super) cookie: bool,
    /// It says some cookie: it is a browser.
    pub(super) browser: bool,
    /// Which page is behind it.
    pub(super) site: Site,
    /// Its page came by TLS.
    pub(super) secure: bool,
}

impl Access {
    pub(super) fn name(&mut self, name: &str) {
        assert!(
            host::is_name(name),
            "{name:?} is no host name; it has letters, digits, dots and hyphens, and neither scheme nor port"
        );
        self.names
            .push(name.trim_end_matches('.').to_ascii_lowercase());
    }

    pub(super) fn caller(&self, req: &Parts) -> Result<Caller, HostError> {
        let host = host::of(&req.uri, req.version, &req.headers, &self.names)?;
        let token = self.token.as_ref();
        let headers = &req.headers;
        let origin = headers.get(http::header::ORIGIN);
        Ok(Caller {
            bearer: token.is_some_and(|token| token.is_borne(headers)),
            cookie: token.is_some_and(|token| token.is_kept(headers, host)),
            browser: headers.contains_key(http::header::COOKIE),
            site: origin::site(host, headers),
            secure: origin.is_some_and(|origin| origin.as_bytes().starts_with(b"https:")),
            host: host.to_owned(),
        })
    }
}

impl Caller {
    /// Whether it has the token. Where something is `done`, a cookie that a page of another site may have sent is none.
    pub(super) fn trusted(&self, done: bool) -> bool {
        self.bearer || self.cookie && (!done || self.site == Site::Own)
    }
}
