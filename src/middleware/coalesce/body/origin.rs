//! What keeps the start of a body for those who come late.

use std::fmt;
use std::sync::Arc;

use super::super::share::Gone;
use super::SharedBody;
use super::fanout::FanOut;
use super::log::Key;
use super::reader::Reader;
use crate::base::error::BoxError;

/// The claim at the start of a body: with it the body is whole for readers to come.
pub(crate) struct Origin<B> {
    pub(super) shared: Arc<FanOut<B>>,
    pub(super) key: Option<Key>,
}

// ===== impl Origin =====

impl<B> Origin<B> {
    /// A reader of the whole body.
    ///
    /// # Errors
    ///
    /// [`Gone`] when nobody came for so long that the others went on without the origin: whoever comes now has to ask anew.
    pub(crate) fn reader(&self) -> Result<SharedBody<B>, BoxError> {
        let joined = match &self.key {
            Some(key) => self.shared.join(key),
            None => unreachable!("an origin has its key until it is dropped"),
        };
        match joined {
            Ok(key) => Ok(SharedBody::reader(Reader::new(self.shared.clone(), key))),
            Err(_) => Err(Gone.into()),
        }
    }
}

impl<B> Drop for Origin<B> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.shared.leave(key);
        }
    }
}

impl<B> fmt::Debug for Origin<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").finish_non_exhaustive()
    }
}
