use super::*;

use std::convert::Infallible;

use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use http::HeaderValue;
use http_body_util::{BodyExt as _, StreamBody};
use proptest::prelude::*;

type Frames = Vec<Result<Frame<Bytes>, &'static str>>;

fn data(text: &'static str) -> Result<Frame<Bytes>, &'static str> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )])
}

fn body(frames: Frames) -> impl Body<Data = Bytes, Error = &'static str> {
    StreamBody::new(stream::iter(frames))
}

fn collected<B>(body: B, max: usize) -> GrpcBody<B>
where
    B: Body,
{
    Collect::new(body, max).now_or_never().unwrap()
}

#[test]
fn a_body_is_whole_with_its_trailers() {
    let frames = vec![
        data("a"),
        data(""),
        data("bc"),
        data("d"),
        Ok(Frame::trailers(trailers())),
    ];
    let body = collected(body(frames), 4);
    let whole = body.as_whole().unwrap();
    assert_eq!(whole.data.as_deref(), Some(&b"abcd"[..]));
    assert_eq!(whole.trailers, Some(trailers()));
    assert_eq!(body.size_hint().exact(), Some(4));
    assert!(!body.is_end_stream());
    let read = body.collect().now_or_never().unwrap().unwrap();
    assert_eq!(read.trailers(), Some(&trailers()));
    assert_eq!(read.to_bytes(), "abcd");
}

#[test]
fn nothing_is_whole_and_over() {
    for frames in [vec![], vec![data("")]] {
        let body = collected(body(frames), 0);
        assert_eq!(body.as_whole(), Some(&Whole::default()));
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
    }
}

#[test]
fn one_frame_is_not_copied() {
    let bytes = Bytes::from(vec![7; 100]);
    let body = collected(http_body_util::Full::new(bytes.clone()), 100);
    let whole = body.into_whole().unwrap();
    assert_eq!(whole.data.unwrap().as_ptr(), bytes.as_ptr());
}

#[test]
fn too_much_is_followed_by_the_rest() {
    let frames = vec![
        data("ab"),
        data("c"),
        data("de"),
        data("f"),
        Ok(Frame::trailers(trailers())),
    ];
    let mut body = collected(body(frames), 4);
    assert!(body.as_whole().is_none() && !body.has_failed() && !body.is_end_stream());
    let hint = body.size_hint();
    assert_eq!((hint.lower(), hint.upper()), (5, None));
    let mut sizes = Vec::new();
    while let Some(frame) = body.frame().now_or_never().unwrap() {
        sizes.push(frame.unwrap().into_data().map(|data| data.len()).ok());
    }
    assert_eq!(sizes, [Some(3), Some(2), Some(1), None]);
}

#[test]
fn an_error_comes_after_what_was_read() {
    let body = collected(body(vec![data("ab"), Err("cut")]), 100);
    assert!(body.as_whole().is_none() && body.has_failed() && !body.is_end_stream());
    let hint = body.size_hint();
    assert_eq!((hint.lower(), hint.upper()), (2, None));
    let error = body.collect().now_or_never().unwrap().unwrap_err();
    assert_eq!(error, "cut");
}

#[test]
fn what_takes_time_is_waited_for() {
    let frames = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"a")))]);
    let slow = StreamBody::new(frames.chain(stream::pending()));
    assert!(Collect::new(slow, 10).now_or_never().is_none());
}

#[test]
fn what_was_passed_is_the_body_itself() {
    let mut body = GrpcBody::passed(http_body_util::Full::new(Bytes::from_static(b"abc")));
    assert!(body.as_whole().is_none() && !body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(3));
    let frame = body.frame().now_or_never().unwrap().unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "abc");
    assert!(body.is_end_stream());
}

proptest! {
    #[test]
    fn nothing_is_lost_whatever_the_limit(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 0..8),
        max in 0usize..40,
        ends in 0u8..3,
    ) {
        let all: Vec<u8> = frames.concat();
        let mut parts: Frames = frames.into_iter().map(|frame| Ok(Frame::data(frame.into()))).collect();
        match ends {
            0 => parts.push(Ok(Frame::trailers(trailers()))),
            1 => parts.push(Err("cut")),
            _ => {}
        }
        let mut body = collected(body(parts), max);
        prop_assert_eq!(body.as_whole().is_some(), all.len() <= max && ends != 1);
        let mut read = Vec::new();
        let mut end = 2;
        loop {
            let hint = body.size_hint();
            let left = (all.len() - read.len()) as u64;
            prop_assert!(hint.lower() <= left);
            prop_assert!(hint.upper().is_none_or(|upper| upper >= left));
            let over = body.is_end_stream();
            match body.frame().now_or_never().unwrap() {
                Some(Ok(frame)) => {
                    prop_assert!(!over);
                    match frame.into_data() {
                        Ok(data) => read.extend_from_slice(&data),
                        Err(_) => end = 0,
                    }
                }
                Some(Err(_)) => {
                    prop_assert!(!over);
                    end = 1;
                    break;
                }
                None => break,
            }
        }
        prop_assert_eq!((read, end), (all, ends));
    }
}
