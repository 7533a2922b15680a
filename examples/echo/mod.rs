//! The service of the tonic examples: one method of each kind.

#[allow(dead_code)] // Only those that shed need it.
mod bounded;

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Code, Request, Response, Status, Streaming};

mod proto {
    #![allow(dead_code, missing_docs, unreachable_pub)]
    include!("../proto/tower_flow.example.v1.rs");
}

#[allow(unused_imports)] // Each example uses one half.
pub(crate) use bounded::Bounded;
#[allow(unused_imports)]
pub(crate) use proto::{Note, Summary, echo_client::EchoClient, echo_server::EchoServer};

/// What `protoc --descriptor_set_out` made of the proto: it tells tower-flow each method's type.
#[allow(dead_code)]
pub(crate) const FDS: &[u8] = include_bytes!("../proto/echo.fds");

/// Does what each note asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Echo;

#[tonic::async_trait]
impl proto::echo_server::Echo for Echo {
    async fn say(&self, req: Request<Note>) -> Result<Response<Note>, Status> {
        answer(req.into_inner()).await.map(Response::new)
    }

    async fn gather(&self, req: Request<Streaming<Note>>) -> Result<Response<Summary>, Status> {
        let mut notes = req.into_inner();
        let mut summary = Summary::default();
        while let Some(note) = notes.message().await? {
            summary.notes += 1;
            summary.bytes += answer(note).await?.body.len() as u64;
        }
        Ok(Response::new(summary))
    }

    type ScatterStream = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;

    async fn scatter(&self, req: Request<Note>) -> Result<Response<Self::ScatterStream>, Status> {
        let note = req.into_inner();
        let times = note.times as usize;
        let notes = stream::repeat(note).take(times).then(answer);
        Ok(Response::new(notes.boxed()))
    }

    type ChatStream = Self::ScatterStream;

    async fn chat(
        &self,
        req: Request<Streaming<Note>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let notes = req.into_inner().then(async |note| answer(note?).await);
        Ok(Response::new(Box::pin(notes)))
    }
}

async fn answer(note: Note) -> Result<Note, Status> {
    if note.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(note.delay_ms.into())).await;
    }
    match Code::from(note.fail as i32) {
        Code::Ok => Ok(note),
        code => Err(Status::new(code, "as asked")),
    }
}
