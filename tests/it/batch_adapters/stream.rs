//! Batches over streams that are kept.

use futures_util::future::join_all;
use tonic::client::Grpc;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::timeout::Timeout;
use tower_flow::BoxError;
use tower_flow::batch::{Batch, ById, Destinations, GrpcStreamBatch, GrpcStreamError, Ordered};
use tower_flow::error::find;

use super::shelf::{Does, Get, Got, PASS, Shelf, channel, get, gets, ids};
use super::unary::result;
use super::{eventually, ms, send};

type Ask<T> = fn(Get) -> T;
type Read<T> = fn(Got) -> T;
type PerItem = Result<Got, Status>;
type InOrder<T = Channel, C = ProstCodec<Get, Got>> =
    GrpcStreamBatch<T, C, Ordered<Ask<Get>, Read<PerItem>>>;
type WithIds<T = Channel> =
    GrpcStreamBatch<T, ProstCodec<Get, Got>, ById<Ask<(u64, Get)>, Read<(u64, PerItem)>>>;

pub fn ordered(channel: Channel) -> InOrder {
    with_codec(channel, ProstCodec::default())
}

fn with_codec<C: Codec<Encode = Get, Decode = Got>>(
    channel: Channel,
    codec: C,
) -> InOrder<Channel, C> {
    let read: Read<PerItem> = |got| result(got).1;
    GrpcStreamBatch::ordered(Grpc::new(channel), PASS, codec, |get| get, read)
}

pub fn by_id(channel: Channel) -> WithIds {
    let (ask, read): (Ask<_>, Read<_>) = (|get| (get.id, get), result);
    GrpcStreamBatch::by_id(Grpc::new(channel), PASS, ProstCodec::default(), ask, read)
}

fn stream_error(error: &BoxError) -> &GrpcStreamError {
    find(error.as_ref()).unwrap_or_else(|| panic!("{error}"))
}

#[tokio::test]
async fn many_batches_go_over_one_stream() {
    let shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let service = ordered(shelf.channel());
    for batch in 0..20 {
        let range = batch * 50..(batch + 1) * 50;
        let gots = send(&service, gets(range.clone())).await.unwrap().all();
        assert_eq!(ids(&gots), range.collect::<Vec<_>>());
    }
    assert_eq!((shelf.streams(), shelf.ids().len()), (1, 1_000));
    assert_eq!((service.opened(), service.idle()), (1, 1));
    shelf.assert_once();
    drop(service);
    eventually("the stream ends", || shelf.open() == 0).await;
}

#[tokio::test]
async fn answers_in_any_order_find_their_items() {
    let shelf = Shelf::start(|_, at, get| match at % 50 {
        49 => Does::AnswersAll,
        _ if get.id == 77 => Does::Refuses(Code::NotFound),
        _ => Does::Keeps,
    })
    .await;
    let service = by_id(shelf.channel());
    for batch in 0..3 {
        let range = batch * 50..(batch + 1) * 50;
        let sent = send(&service, gets(range.clone())).await.unwrap();
        for (id, item) in range.zip(sent.items) {
            match item.unwrap() {
                Ok(got) => assert_eq!(got.id, id),
                Err(_) => assert_eq!(id, 77),
            }
        }
    }
    assert_eq!(shelf.streams(), 1);
}

#[tokio::test]
async fn an_item_may_fail_alone() {
    let shelf = Shelf::start(|_, at, _| match at {
        1 => Does::Refuses(Code::NotFound),
        _ => Does::Answers,
    })
    .await;
    let service = ordered(shelf.channel());
    let sent = send(&service, gets(0..3)).await.unwrap();
    assert_eq!(sent.outline(), "afa");
    let status = sent.error(1).downcast_ref::<Status>().unwrap();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(service.idle(), 1);
}

#[tokio::test]
async fn batches_at_once_have_streams_of_their_own() {
    let shelf = Shelf::start(|_, _, get| match get.id {
        0..8 => Does::Waits(100),
        _ => Does::Answers,
    })
    .await;
    let service = ordered(shelf.channel());
    let sent = join_all((0..8).map(|id| send(&service, gets([id, id + 100])))).await;
    for (id, sent) in (0..8).zip(sent) {
        assert_eq!(ids(&sent.unwrap().all()), [id, id + 100]);
    }
    assert_eq!((shelf.streams(), service.idle()), (8, 5));
    eventually("three too many are dropped", || shelf.open() == 5).await;
    for id in 200..205 {
        send(&service, gets([id])).await.unwrap().all();
    }
    assert_eq!(shelf.streams(), 8);
    shelf.assert_once();
}

#[tokio::test]
async fn a_stream_that_ends_too_soon_leaves_the_rest_missing() {
    let shelf = Shelf::start(|stream, at, _| match (stream, at) {
        (0, 3) => Does::Ends,
        _ => Does::Answers,
    })
    .await;
    for service in [ordered(shelf.channel()), ordered(shelf.channel())] {
        let first = shelf.streams() == 0;
        let sent = send(&service, gets(0..6)).await.unwrap();
        assert_eq!(sent.outline(), if first { "aaa---" } else { "aaaaaa" });
        assert_eq!(send(&service, gets(6..9)).await.unwrap().outline(), "aaa");
    }
    assert_eq!(shelf.streams(), 3);
}

#[tokio::test]
async fn a_stream_that_answers_nobody_fails_the_batch() {
    let shelf = Shelf::start(|stream, _, _| match stream {
        0 => Does::Ends,
        1 => Does::Fails(Code::PermissionDenied),
        _ => Does::Answers,
    })
    .await;
    let service = by_id(shelf.channel());
    for code in [Code::Unavailable, Code::PermissionDenied] {
        let error = send(&service, gets(0..3)).await.err().unwrap();
        assert_eq!(error.status().code(), code, "{error}");
        assert_eq!((error.answered(), error.items()), (0, 3));
    }
    assert_eq!(send(&service, gets(3..6)).await.unwrap().outline(), "aaa");
}

#[tokio::test]
async fn a_stream_that_fails_mid_batch_fails_those_without_answer() {
    let shelf = Shelf::start(|stream, at, _| match (stream, at) {
        (0, 0 | 1) => Does::Keeps,
        (0, 2) => Does::Answers,
        (0, 3) => Does::Fails(Code::Aborted),
        _ => Does::Answers,
    })
    .await;
    let service = by_id(shelf.channel());
    let sent = send(&service, gets(0..5)).await.unwrap();
    assert_eq!(sent.outline(), "ffaff");
    for position in [0, 1, 3, 4] {
        let error = stream_error(sent.error(position));
        assert_eq!(error.status().code(), Code::Aborted);
        assert_eq!((error.answered(), error.items()), (1, 5));
    }
    assert_eq!(send(&service, gets(5..9)).await.unwrap().outline(), "aaaa");
    assert_eq!(shelf.streams(), 2);
    shelf.assert_once();
}

#[tokio::test]
async fn a_stream_that_ended_between_batches_is_replaced_unnoticed() {
    let shelf = Shelf::start(|_, at, _| match at {
        9 => Does::AnswersAndEnds,
        _ => Does::Answers,
    })
    .await;
    let service = ordered(shelf.channel());
    for batch in 0..5 {
        let range = batch * 10..(batch + 1) * 10;
        let gots = send(&service, gets(range.clone())).await.unwrap().all();
        assert_eq!(ids(&gots), range.collect::<Vec<_>>());
        eventually("it ends", || shelf.open() == 0).await;
        tokio::time::sleep(ms(20)).await;
    }
    assert_eq!((shelf.streams(), shelf.ids().len()), (5, 50));
    shelf.assert_once();
}

#[tokio::test]
async fn a_server_that_was_restarted_between_batches_goes_unnoticed() {
    let mut shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let service = by_id(shelf.channel());
    for batch in 0..3 {
        let range = batch * 10..(batch + 1) * 10;
        let gots = send(&service, gets(range.clone())).await.unwrap().all();
        assert_eq!(ids(&gots), range.collect::<Vec<_>>());
        shelf.kill().await;
        shelf.restart().await;
    }
    assert_eq!(shelf.streams(), 3);
    shelf.assert_once();
}

#[tokio::test]
async fn a_server_that_dies_mid_batch_fails_those_without_answer() {
    let mut shelf = Shelf::start(|stream, at, _| match (stream, at) {
        (0, 4) => Does::WaitsAtDoor,
        _ => Does::Answers,
    })
    .await;
    let service = by_id(shelf.channel());
    let sending = tokio::spawn({
        let service = service.clone();
        async move { send(&service, gets(0..8)).await }
    });
    eventually("it waits", || shelf.ids().len() >= 5).await;
    tokio::time::sleep(ms(20)).await;
    shelf.kill().await;
    let sent = sending.await.unwrap().unwrap();
    assert_eq!(sent.outline(), "aaaaffff");
    let error = stream_error(sent.error(7));
    assert_eq!((error.answered(), error.items()), (4, 8));
    let error = send(&service, gets(8..9)).await.err().unwrap();
    assert_eq!(error.status().code(), Code::Unavailable, "{error}");
    shelf.restart().await;
    assert_eq!(send(&service, gets(9..12)).await.unwrap().outline(), "aaa");
    shelf.assert_once();
}

#[tokio::test]
async fn a_batch_that_is_given_up_takes_its_stream_along() {
    let shelf = Shelf::start(|stream, at, _| match (stream, at) {
        (0, 2) => Does::Waits(60_000),
        _ => Does::Answers,
    })
    .await;
    let service = ordered(shelf.channel());
    let hasty = Timeout::new(service.clone(), ms(100));
    let error = send(&hasty, gets(0..5)).await.err().unwrap();
    assert!(error.is::<tower::timeout::error::Elapsed>());
    assert_eq!(service.idle(), 0);
    eventually("the server hears of it", || shelf.open() == 0).await;
    assert_eq!(
        ids(&send(&service, gets(5..8)).await.unwrap().all()),
        [5, 6, 7]
    );
    assert_eq!(shelf.streams(), 2);
    shelf.assert_once();
}

#[tokio::test]
async fn what_was_not_sent_when_a_batch_is_given_up_never_is() {
    let shelf = Shelf::start(|_, _, get| match get.id {
        0 => Does::WaitsAtDoor,
        _ => Does::Answers,
    })
    .await;
    let service = ordered(shelf.channel());
    let large = (0..100).map(|id| Get {
        body: vec![7; 100_000],
        ..get(id)
    });
    let sending = tokio::time::timeout(ms(200), send(&service, large));
    assert!(sending.await.is_err());
    shelf.open_door();
    eventually("the server hears of it", || shelf.open() == 0).await;
    let arrived = shelf.ids().len();
    assert!(
        arrived < 30,
        "{arrived} of 100 arrived, of which the windows hold few"
    );
    assert_eq!(
        send(&service, gets(200..203)).await.unwrap().outline(),
        "aaa"
    );
}

#[tokio::test]
async fn large_messages_go_both_ways_at_once() {
    let shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let service = ordered(shelf.channel());
    for _ in 0..3 {
        let large = (0..64).map(|id| Get {
            body: vec![id as u8; 100_000],
            ..get(id)
        });
        let gots = send(&service, large).await.unwrap().all();
        assert!(
            gots.iter()
                .all(|got| got.body == vec![got.id as u8; 100_000])
        );
    }
    assert_eq!(shelf.streams(), 1);
}

#[tokio::test]
async fn an_answer_nobody_asked_for_costs_its_stream() {
    let shelf = Shelf::start(|stream, _, _| match stream {
        0 => Does::AnswersTwice,
        1 => Does::AnswersAs(99),
        _ => Does::Answers,
    })
    .await;
    let service = by_id(shelf.channel());
    // The second answer is taken for that of the second item.
    let sent = send(&service, gets([1, 2, 3])).await.unwrap();
    assert_eq!((sent.outline().as_str(), sent.unknown), ("aa-", 1));
    let sent = send(&service, gets([4, 5])).await.unwrap();
    assert_eq!((sent.outline().as_str(), sent.unknown), ("--", 2));
    assert_eq!(send(&service, gets([6, 7])).await.unwrap().outline(), "aa");
    assert_eq!(shelf.streams(), 3);

    // One that comes after the last is seen before the next batch.
    let shelf = Shelf::start(|stream, _, _| match stream {
        0 => Does::AnswersTwice,
        _ => Does::Answers,
    })
    .await;
    let service = ordered(shelf.channel());
    assert_eq!(ids(&send(&service, gets([1])).await.unwrap().all()), [1]);
    tokio::time::sleep(ms(50)).await;
    assert_eq!(ids(&send(&service, gets([2])).await.unwrap().all()), [2]);
    assert_eq!(shelf.streams(), 2);
}

#[tokio::test]
async fn equal_ids_are_answered_in_their_order() {
    let shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let service = by_id(shelf.channel());
    let body = |body: &str| Get {
        id: 1,
        body: body.into(),
    };
    let gots = send(&service, [body("a"), body("b"), body("c")])
        .await
        .unwrap()
        .all();
    let bodies: Vec<_> = gots.iter().map(|got| got.body.as_slice()).collect();
    assert_eq!(bodies, [b"a", b"b", b"c"]);
    assert_eq!(service.idle(), 1);
}

/// Panics when it encodes 13, wherever that is.
#[derive(Clone, Default)]
struct Superstitious(ProstCodec<Get, Got>);

struct Panics(<ProstCodec<Get, Got> as Codec>::Encoder);

impl Codec for Superstitious {
    type Encode = Get;
    type Decode = Got;
    type Encoder = Panics;
    type Decoder = <ProstCodec<Get, Got> as Codec>::Decoder;

    fn encoder(&mut self) -> Panics {
        Panics(self.0.encoder())
    }

    fn decoder(&mut self) -> Self::Decoder {
        self.0.decoder()
    }
}

impl Encoder for Panics {
    type Item = Get;
    type Error = Status;

    fn encode(&mut self, get: Get, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        assert!(get.id != 13, "13");
        self.0.encode(get, into)
    }
}

#[tokio::test]
async fn an_encoder_that_panics_fails_the_batch_and_no_other() {
    let shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let service = with_codec(shelf.channel(), Superstitious::default());
    assert_eq!(send(&service, gets(0..3)).await.unwrap().outline(), "aaa");
    let error = send(&service, gets(13..16)).await.err().unwrap();
    assert_eq!(error.status().code(), Code::Internal);
    assert_eq!(error.status().message(), "the encoder panicked: 13");
    assert_eq!(send(&service, gets(16..19)).await.unwrap().outline(), "aaa");

    // On a fresh stream, and after others.
    let sent = send(&service.clone().max_idle(0), gets([20, 21]))
        .await
        .unwrap();
    assert_eq!(sent.outline(), "aa");
    let error = send(&service, gets([13])).await.err().unwrap();
    assert_eq!(error.status().message(), "the encoder panicked: 13");
    shelf.assert_once();
}

#[tokio::test]
async fn each_destination_has_its_channel_and_streams() {
    let shelves = [
        Shelf::start(|_, _, _| Does::Answers).await,
        Shelf::start(|_, _, _| Does::Answers).await,
        Shelf::start(|_, _, _| Does::Answers).await,
    ];
    let addrs: Vec<_> = shelves.iter().map(|shelf| shelf.addr).collect();
    let service = Destinations::new(
        |get: &Get| get.id / 1_000,
        move |shelf: &u64| match addrs.get(*shelf as usize) {
            Some(addr) => Ok(ordered(channel(*addr))),
            None => Err("no such shelf".into()),
        },
    );
    for round in 0..5 {
        for shelf in 0..3 {
            let first = shelf * 1_000 + round * 10;
            let gots = send(&service, gets(first..first + 10)).await.unwrap().all();
            assert_eq!(gots[9].id, first + 9);
        }
    }
    let error = send(&service, gets([3_000])).await.err().unwrap();
    assert_eq!(error.to_string(), "no such shelf");
    for shelf in &shelves {
        assert_eq!(
            (shelf.streams(), shelf.open(), shelf.ids().len()),
            (1, 1, 50)
        );
    }

    // With room for one, the others go, and their streams with them.
    let service = service.max(1);
    send(&service, gets([500])).await.unwrap().all();
    assert_eq!(service.len(), 1);
    eventually("the others end", || {
        shelves[1].open() + shelves[2].open() == 0
    })
    .await;
    assert_eq!((shelves[0].open(), shelves[0].streams()), (1, 1));
}

#[tokio::test]
async fn a_batch_of_a_thousand_is_read_as_it_comes() {
    let shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let service = by_id(shelf.channel());
    let gots = send(&service, Batch::new(gets(0..1_000)))
        .await
        .unwrap()
        .all();
    assert_eq!(ids(&gots), (0..1_000).collect::<Vec<_>>());
    assert_eq!((shelf.streams(), shelf.ids().len()), (1, 1_000));
}
