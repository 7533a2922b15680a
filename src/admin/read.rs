//! A request's body, which is short or not read at all.

use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::StatusCode;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::timeout;

/// How large it may be,
const UP_TO: usize = 4096;
/// and how long it may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Why a body is of no use: a status and what to say.
pub(super) type Unread = (StatusCode, &'static str);

/// All of it.
pub(super) async fn body<B: Body>(body: B) -> Result<Bytes, Unread> {
    const LARGE: Unread = (
        StatusCode::PAYLOAD_TOO_LARGE,
        "a body has at most 4096 bytes here\n",
    );
    if body.size_hint().lower() > UP_TO as u64 {
        return Err(LARGE);
    }
    let all = async {
        let mut body = pin!(body);
        let mut all = Vec::new();
        while let Some(frame) = body.as_mut().frame().await {
            let frame = frame.map_err(|_| (StatusCode::BAD_REQUEST, "the body broke off\n"))?;
            if let Ok(data) = frame.into_data() {
                if all.len() + data.remaining() > UP_TO {
                    return Err(LARGE);
                }
                all.put(data);
            }
        }
        Ok(all.into())
    };
    let slow = (
        StatusCode::REQUEST_TIMEOUT,
        "a body may take 5 seconds here\n",
    );
    timeout(WITHIN, all).await.unwrap_or(Err(slow))
}
