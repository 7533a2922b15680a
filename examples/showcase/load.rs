//! A mixed load: every kind of method, every kind of ending.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use http_body::Body;
use tonic::Request;
use tonic::client::GrpcService;
use tower_flow::BoxError;

use crate::echo::{EchoClient, Note};
use crate::progress;

/// How many callers there are, each with one call at a time.
const CALLERS: u64 = 32;

/// What the load was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Driven {
    pub(crate) calls: u64,
    pub(crate) took: Duration,
}

/// Drives for `time`, with a progress bar on stderr unless `quiet`.
pub(crate) async fn drive<S>(stub: EchoClient<S>, time: Duration, quiet: bool) -> Driven
where
    S: GrpcService<tonic::body::Body, Future: Send> + Clone + Send + 'static,
    S::ResponseBody: Body<Data = bytes::Bytes, Error: Into<BoxError> + Send> + Send + 'static,
{
    let start = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| tokio::spawn(calls(stub.clone(), caller, start + time)))
        .collect();
    progress::show("driving a mixed load", time, quiet).await;
    let mut made = 0;
    for caller in callers {
        made += caller
            .await
            .expect("a caller catches what its calls come to");
    }
    Driven {
        calls: made,
        took: start.elapsed(),
    }
}

/// One caller's calls, by turns, until it is time; how many it made.
async fn calls<S>(mut stub: EchoClient<S>, caller: u64, until: Instant) -> u64
where
    S: GrpcService<tonic::body::Body>,
    S::ResponseBody: Body<Data = bytes::Bytes, Error: Into<BoxError> + Send> + Send + 'static,
{
    let mut made = 0;
    while Instant::now() < until {
        let turn = caller + made;
        made += 1;
        let size = match turn % 50 {
            0 => 256 * 1024,
            1..=5 => 8 * 1024,
            _ => 32,
        };
        let note = Note {
            body: vec![0; size],
            ..Note::default()
        };
        // What a call comes to is in the books; here there is nothing to do about it.
        match (turn % 64, turn % 16) {
            (_, 0) => _ = stub.gather(tokio_stream::iter(vec![note; 20])).await,
            (_, 1 | 2) => {
                if let Ok(answers) = stub.scatter(Note { times: 50, ..note }).await {
                    answers.into_inner().for_each(async |_| ()).await;
                }
            }
            (_, 3) => {
                if let Ok(answers) = stub.chat(tokio_stream::iter(vec![note; 20])).await {
                    answers.into_inner().for_each(async |_| ()).await;
                }
            }
            // Leaves a stream half read.
            (4, _) => {
                if let Ok(answers) = stub
                    .scatter(Note {
                        times: 50,
                        delay_ms: 1,
                        ..note
                    })
                    .await
                {
                    answers.into_inner().take(3).for_each(async |_| ()).await;
                }
            }
            // Gives up on an answer.
            (20, _) => {
                let slow = stub.say(Note {
                    delay_ms: 50,
                    ..note
                });
                let _ = tokio::time::timeout(Duration::from_millis(5), slow).await;
            }
            // Runs out of time.
            (36, _) => {
                let mut late = Request::new(Note {
                    delay_ms: 50,
                    ..note
                });
                late.set_timeout(Duration::from_millis(10));
                let _ = stub.say(late).await;
            }
            // Is asked to fail, in many ways.
            (_, 7 | 8) => {
                _ = stub
                    .say(Note {
                        fail: 1 + (turn % 16) as u32,
                        ..note
                    })
                    .await
            }
            _ => _ = stub.say(note).await,
        }
    }
    made
}
