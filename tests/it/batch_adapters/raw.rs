//! Servers that no library lets one write: they break the protocol, or the stream.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::net::TcpListener;
use tonic::Code;
use tower_flow::BoxError;
use tower_flow::batch::GrpcStreamError;
use tower_flow::error::find;

use super::send;
use super::shelf::{Get, Got, channel, gets, ids};
use super::stream::{by_id, ordered};
use super::unary::by_key;
use crate::support::framed;

/// A call, as the server sees it.
struct Call {
    number: usize,
    asked: RecvStream,
    read: BytesMut,
    respond: SendResponse<Bytes>,
}

/// Hands every call of every connection to `handle`.
async fn serve<F, H>(handle: F) -> SocketAddr
where
    F: Fn(Call) -> H + Send + Sync + 'static,
    H: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((io, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((req, respond))) = connection.accept().await {
                let call = Call::new(number, req, respond);
                number += 1;
                tokio::spawn(handle(call));
            }
        }
    });
    addr
}

// ===== impl Call =====

impl Call {
    fn new(number: usize, req: Request<RecvStream>, respond: SendResponse<Bytes>) -> Self {
        Self {
            number,
            asked: req.into_body(),
            read: BytesMut::new(),
            respond,
        }
    }

    /// The next message, if there is one.
    async fn get(&mut self) -> Result<Option<Get>, BoxError> {
        loop {
            if let Some(length) = self.read.get(1..5) {
                let length = u32::from_be_bytes(length.try_into()?) as usize;
                if self.read.len() >= 5 + length {
                    let message = self.read.split_to(5 + length);
                    return Ok(Some(Get::decode(&message[5..])?));
                }
            }
            match self.asked.data().await {
                Some(data) => {
                    let data = data?;
                    self.asked.flow_control().release_capacity(data.len())?;
                    self.read.extend_from_slice(&data);
                }
                None => return Ok(None),
            }
        }
    }

    fn answer(&mut self) -> Result<SendStream<Bytes>, BoxError> {
        let head = Response::builder().header("content-type", "application/grpc");
        Ok(self.respond.send_response(head.body(())?, false)?)
    }

    async fn echo(mut self) -> Result<(), BoxError> {
        let mut out = self.answer()?;
        while let Some(get) = self.get().await? {
            out.send_data(got(get.id), false)?;
        }
        end(out)
    }
}

fn got(id: u64) -> Bytes {
    let got = Got {
        id,
        ..Got::default()
    };
    framed(0, &got.encode_to_vec()).into()
}

fn end(mut out: SendStream<Bytes>) -> Result<(), BoxError> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse()?);
    Ok(out.send_trailers(trailers)?)
}

#[tokio::test]
async fn a_stream_reset_mid_batch_fails_those_without_answer() {
    let addr = serve(async |mut call: Call| {
        if call.number > 0 {
            return call.echo().await;
        }
        let mut out = call.answer()?;
        for _ in 0..2 {
            let get = call.get().await?.ok_or("a message")?;
            out.send_data(got(get.id), false)?;
        }
        // What was sent gets out before the reset.
        tokio::time::sleep(super::ms(50)).await;
        out.send_reset(Reason::INTERNAL_ERROR);
        Ok(())
    })
    .await;
    let service = ordered(channel(addr));
    let sent = send(&service, gets(0..5)).await.unwrap();
    assert_eq!(sent.outline(), "aafff");
    let error = find::<GrpcStreamError>(sent.error(4).as_ref()).unwrap();
    assert_eq!((error.answered(), error.items()), (2, 5));
    assert_eq!(error.status().code(), Code::Internal);
    assert_eq!(
        ids(&send(&service, gets(5..8)).await.unwrap().all()),
        [5, 6, 7]
    );
    assert_eq!(service.opened(), 2);
}

#[tokio::test]
async fn garbage_is_an_error_of_those_without_answer() {
    const GARBAGE: [&[u8]; 4] = [
        b"\0\0\0\0\x03\xff\xff\xff",
        b"\x07\0\0\0\x01x",
        b"\0\xff\xff\xff\xff",
        b"\x01\0\0\0\x01x",
    ];
    let addr = serve(async |mut call: Call| {
        let Some(garbage) = GARBAGE.get(call.number) else {
            return call.echo().await;
        };
        let mut out = call.answer()?;
        let get = call.get().await?.ok_or("a message")?;
        out.send_data(got(get.id), false)?;
        out.send_data(Bytes::from_static(garbage), false)?;
        // It goes on, as if nothing were wrong.
        while call.get().await?.is_some() {}
        end(out)
    })
    .await;
    let service = by_id(channel(addr));
    for (n, _) in GARBAGE.iter().enumerate() {
        let sent = send(&service, gets(0..4)).await.unwrap();
        assert_eq!(sent.outline(), "afff", "{n}");
        let error = find::<GrpcStreamError>(sent.error(1).as_ref()).unwrap();
        let code = if n == 2 {
            Code::OutOfRange
        } else {
            Code::Internal
        };
        assert_eq!(error.status().code(), code, "{n}: {error}");
    }
    assert_eq!(send(&service, gets(0..4)).await.unwrap().outline(), "aaaa");
}

#[tokio::test]
async fn a_stream_that_breaks_off_has_no_status() {
    let addr = serve(async |mut call: Call| {
        if call.number > 1 {
            return call.echo().await;
        }
        let number = call.number;
        let mut out = call.answer()?;
        let get = call.get().await?.ok_or("a message")?;
        // Once in the middle of an answer.
        let answer = got(get.id);
        let part = if number == 0 { answer.len() } else { 3 };
        out.send_data(answer.slice(..part), true)?;
        Ok(())
    })
    .await;
    let service = by_id(channel(addr));
    let sent = send(&service, gets(1..4)).await.unwrap();
    assert_eq!(sent.outline(), "aff");
    let error = find::<GrpcStreamError>(sent.error(1).as_ref()).unwrap();
    assert_eq!(error.status().code(), Code::Unknown, "{error}");
    let error = send(&service, gets(1..4)).await.err().unwrap();
    assert_eq!(error.status().code(), Code::Internal, "{error}");
    assert_eq!(send(&service, gets(1..4)).await.unwrap().outline(), "aaa");
}

#[tokio::test]
async fn what_is_refused_at_once_fails_as_a_whole() {
    let addr = serve(async |mut call: Call| {
        let head = Response::builder();
        match call.number {
            0 => call.respond.send_reset(Reason::REFUSED_STREAM),
            1 => {
                let head = head.status(502).header("content-type", "text/html");
                let mut out = call.respond.send_response(head.body(())?, false)?;
                out.send_data(Bytes::from_static(b"<h1>Bad gateway</h1>"), true)?;
            }
            2 => {
                let head = head.header("content-type", "application/grpc");
                let head = head.header("grpc-status", "0").body(())?;
                call.respond.send_response(head, true)?;
            }
            _ => return call.echo().await,
        }
        Ok(())
    })
    .await;
    let service = ordered(channel(addr));
    for n in 0..3 {
        let error = send(&service, gets(0..4)).await.err().unwrap();
        let code = if n == 1 {
            Code::Internal
        } else {
            Code::Unavailable
        };
        assert_eq!(error.status().code(), code, "{n}: {error}");
        assert_eq!(error.answered(), 0);
    }
    assert_eq!(send(&service, gets(0..4)).await.unwrap().outline(), "aaaa");
    // The page of the gateway began as a stream does.
    assert_eq!((service.opened(), service.idle()), (2, 1));
}

#[tokio::test]
async fn a_server_may_answer_the_call_when_it_has_read_the_batch() {
    let addr = serve(async |mut call: Call| {
        let mut read = Vec::new();
        while read.len() < 3 {
            read.push(call.get().await?.ok_or("a message")?);
        }
        let mut out = call.answer()?;
        for get in read {
            out.send_data(got(get.id), false)?;
        }
        while call.get().await?.is_some() {}
        end(out)
    })
    .await;
    let service = ordered(channel(addr));
    assert_eq!(
        ids(&send(&service, gets(0..3)).await.unwrap().all()),
        [0, 1, 2]
    );
}

#[tokio::test]
async fn garbage_for_a_unary_call_is_an_error() {
    let addr = serve(async |mut call: Call| {
        let mut out = call.answer()?;
        out.send_data(Bytes::from_static(b"\0\0\0\0\x03\xff\xff\xff"), false)?;
        end(out)
    })
    .await;
    let status = send(&by_key(channel(addr)), gets(0..3))
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::Internal, "{status}");
}
