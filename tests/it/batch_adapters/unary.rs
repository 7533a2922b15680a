//! A batch as one unary call.

use tonic::client::Grpc;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::Service;
use tower_flow::BoxError;
use tower_flow::batch::{All, Answers, Batch, GrpcBatch, Keys};

use super::shelf::{Does, GET_MANY, Get, Gets, Got, Gots, Shelf, channel, get, gets, ids};
use super::{eventually, ms, send};

/// Answers come by id; one with a code is a failure of its item.
pub fn by_key(
    channel: Channel,
) -> impl Service<Batch<Get>, Response = Answers<Got, BoxError>, Error = Status, Future: Send>
+ Clone
+ Send
+ 'static {
    let grpc = Grpc::new(channel).max_decoding_message_size(16 << 20);
    GrpcBatch::new(
        grpc,
        GET_MANY,
        ProstCodec::default(),
        |batch: Batch<Get>| {
            let keys = batch.keys(|get| get.id);
            (
                Gets {
                    gets: batch.into_vec(),
                },
                keys,
            )
        },
        |keys: Keys<u64>, gots: Gots| Ok(keys.results(gots.gots.into_iter().map(result))),
    )
}

pub fn result(got: Got) -> (u64, Result<Got, Status>) {
    let result = match got.code {
        0 => Ok(got.clone()),
        code => Err(Status::new(Code::from(code as i32), "this one")),
    };
    (got.id, result)
}

#[tokio::test]
async fn a_batch_is_one_call_and_answers_find_their_items() {
    let shelf = Shelf::start(|_, at, _| match at {
        99 => Does::AnswersAll,
        7 => Does::Refuses(Code::NotFound),
        _ => Does::Keeps,
    })
    .await;
    let service = by_key(shelf.channel());
    let sent = send(&service, gets(0..100)).await.unwrap();
    assert_eq!(sent.unknown, 0);
    for (position, item) in sent.items.iter().enumerate() {
        match item.as_ref().unwrap() {
            Ok(got) => assert_eq!(got.id, position as u64),
            Err(_) => assert_eq!(position, 7),
        }
    }
    let status = sent.error(7).downcast_ref::<Status>().unwrap();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!((shelf.calls(), shelf.ids().len()), (1, 100));
    shelf.assert_once();
}

#[tokio::test]
async fn an_answer_of_the_wrong_length_is_missed_where_it_is() {
    let shelf = Shelf::start(|_, at, _| match at {
        1 => Does::AnswersAs(77),
        2 => Does::AnswersTwice,
        4 => Does::Ends,
        _ => Does::Answers,
    })
    .await;
    let sent = send(&by_key(shelf.channel()), gets(0..6)).await.unwrap();
    assert_eq!(sent.outline(), "a-aa--");
    assert_eq!(sent.unknown, 2, "one is for nobody, one was there already");
}

#[tokio::test]
async fn what_a_server_fails_with_is_the_batchs() {
    let shelf = Shelf::start(|_, at, _| match at {
        2 => Does::Fails(Code::DataLoss),
        _ => Does::Answers,
    })
    .await;
    let service = by_key(shelf.channel());
    let status = send(&service, gets(0..6)).await.err().unwrap();
    assert_eq!(
        (status.code(), status.message()),
        (Code::DataLoss, "as the script says")
    );
    assert_eq!(send(&service, gets(0..2)).await.unwrap().all().len(), 2);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let mut shelf = Shelf::start(|_, _, _| Does::Answers).await;
    shelf.kill().await;
    let service = by_key(channel(shelf.addr));
    let status = send(&service, gets(0..6)).await.err().unwrap();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    shelf.restart().await;
    assert_eq!(
        ids(&send(&service, gets(0..6)).await.unwrap().all()),
        [0, 1, 2, 3, 4, 5]
    );
}

#[tokio::test]
async fn a_call_that_is_given_up_ends_on_the_server() {
    let shelf = Shelf::start(|_, _, _| Does::WaitsAtDoor).await;
    let service = by_key(shelf.channel());
    let waiting = tokio::time::timeout(ms(50), send(&service, gets(0..3)));
    assert!(waiting.await.is_err());
    eventually("the server lets go", || shelf.open() == 0).await;
    shelf.open_door();
    assert_eq!(send(&service, gets(3..6)).await.unwrap().all().len(), 3);
}

#[tokio::test]
async fn large_messages_go_through_up_to_the_limit_of_the_channel() {
    let shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let large = |n: u64| {
        (0..n).map(|id| Get {
            body: vec![7; 100_000],
            ..get(id)
        })
    };
    let gots = send(&by_key(shelf.channel()), large(64))
        .await
        .unwrap()
        .all();
    assert!(gots.iter().all(|got| got.body.len() == 100_000));

    let small = GrpcBatch::new(
        Grpc::new(shelf.channel()).max_decoding_message_size(1 << 20),
        GET_MANY,
        ProstCodec::default(),
        |batch: Batch<Get>| {
            (
                Gets {
                    gets: batch.into_vec(),
                },
                (),
            )
        },
        |(), gots: Gots| {
            let gots = gots.gots.into_iter().map(|got| result(got).1);
            Ok(gots.collect::<Vec<_>>())
        },
    );
    let status = send(&small, large(64)).await.err().unwrap();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(send(&small, large(2)).await.unwrap().all().len(), 2);
}

/// A codec that cannot encode anything.
#[derive(Clone, Default)]
struct Panics(ProstCodec<Gets, Gots>);

impl Codec for Panics {
    type Encode = Gets;
    type Decode = Gots;
    type Encoder = Self;
    type Decoder = <ProstCodec<Gets, Gots> as Codec>::Decoder;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self::Decoder {
        self.0.decoder()
    }
}

impl Encoder for Panics {
    type Item = Gets;
    type Error = Status;

    fn encode(&mut self, gets: Gets, _: &mut EncodeBuf<'_>) -> Result<(), Status> {
        panic!("{} of them", gets.gets.len());
    }
}

#[tokio::test]
async fn an_encoder_that_panics_fails_the_call() {
    let shelf = Shelf::start(|_, _, _| Does::Answers).await;
    let service = GrpcBatch::new(
        Grpc::new(shelf.channel()),
        GET_MANY,
        Panics::default(),
        |batch: Batch<Get>| {
            (
                Gets {
                    gets: batch.into_vec(),
                },
                (),
            )
        },
        |(), _: Gots| Ok(All(())),
    );
    let status = send(&service, gets(0..3)).await.err().unwrap();
    assert_eq!(status.message(), "the encoder panicked: 3 of them");
    assert_eq!(shelf.calls(), 0);
}
