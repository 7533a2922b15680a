//! Equal requests in flight become one.

mod key;
mod share;

pub use key::{Facts, KeyBy, Terms};
pub use share::{Admit, ArcError, CloneResult, Share, ShareExt, SharedError, When};
