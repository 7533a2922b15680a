//! What takes items: the gRPC service, in front of a pipeline for single items.
//!
//! ```text
//!  Ingest        ─┐
//!                 ├─► item ─► shed (lag) ─► batch ─► timing ─► store
//!  IngestStream  ─┘
//! ```
//!
//! Shedding is of items and not of calls: a stream that goes on for hours is refused when the workers are behind, at the
//! item it has come to.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream as _};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};
use tower::util::BoxCloneSyncService;
use tower::{Service as _, ServiceBuilder, ServiceExt as _};
use tower_flow::batch::{BatchHandle, BatchLayer, Oversize};
use tower_flow::priority::Priority;
use tower_flow::shed::{Ask, Queue, ShedLayer};
use tower_flow::timing::TimingLayer;
use tower_flow::{BoxError, Flow};

use crate::proto::ingest_service_server::IngestService;
use crate::proto::{IngestRequest, IngestResponse};
use crate::refusal;
use crate::store::{Item, Store, Stored};

/// How many items of a stream are on their way to the store at once.
const WINDOW: usize = 256;

/// And how many bytes, if there are several.
const WINDOW_BYTES: usize = 1 << 20;

/// How many items of all are.
const INTAKE: usize = 65_536;

/// A batch is one write and one sync: the more the better, as long as nobody waits for it.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;

const LONGEST_ID: usize = 256;

/// Stores items.
type Pipeline = BoxCloneSyncService<Item, Stored, BoxError>;

type Answer = BoxFuture<'static, Result<Stored, BoxError>>;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    pipeline: Pipeline,
    /// Turns true when streams have to come to their end.
    ending: watch::Receiver<bool>,
    calls: Arc<AtomicU64>,
}

/// A stream on its way.
struct Flight {
    pipeline: Pipeline,
    priority: Priority,
    cohort: u64,
    /// Oldest first; with what each weighs.
    answers: VecDeque<(Slot, usize)>,
    bytes: usize,
    tally: IngestResponse,
    /// Why nothing more is read.
    end: Option<Result<(), Status>>,
}

enum Slot {
    Waiting(Answer),
    Told(Result<Stored, BoxError>),
}

// ===== impl Intake =====

impl Intake {
    /// In front of `store`. The handle drains what is between both.
    pub(crate) fn new(
        store: &Store,
        queue: usize,
        ending: watch::Receiver<bool>,
        flow: &Flow,
    ) -> (Self, BatchHandle) {
        // Its pressure is what sheds. The limit is for when the store stands still; nobody waits for a slot, since whoever
        // is on the way to the store waits already.
        let shed = ShedLayer::fixed(INTAKE)
            .name("intake")
            .queue(Queue::none())
            .max_cut(0.0)
            .pressure(store.pressure(queue))
            .triage_by(|item: &Item| Ask::new().priority(item.priority).cohort(item.cohort));
        let batch = BatchLayer::new()
            .name("intake")
            .max_items(BATCH)
            .max_weight(
                |item: &Item| item.id.len() + item.payload.len() + 16,
                BATCH_BYTES,
            )
            .oversize(Oversize::Alone)
            // All that shedding lets in: of a stream only the oldest item looks whether it may go on, so none may wait in line.
            .queue(INTAKE, None)
            .max_in_flight(store.at_once(), store.at_once());
        let pipeline = ServiceBuilder::new()
            .layer(shed.attach(flow))
            .layer(batch.clone().attach(flow))
            .layer(TimingLayer::new("store").attach(flow))
            .service(store.storing());
        let intake = Self {
            pipeline: Pipeline::new(pipeline),
            ending,
            calls: Arc::default(),
        };
        (intake, batch.handle())
    }

    fn flight<T>(&self, req: &Request<T>) -> Flight {
        let priority = req.metadata().get("x-priority");
        let priority = priority.and_then(|text| text.to_str().ok()?.parse().ok());
        Flight {
            pipeline: self.pipeline.clone(),
            // Whoever is refused still has its item, and can send it later.
            priority: priority.unwrap_or(Priority::Sheddable),
            cohort: self.calls.fetch_add(1, Relaxed),
            answers: VecDeque::new(),
            bytes: 0,
            tally: IngestResponse::default(),
            end: None,
        }
    }
}

#[tonic::async_trait]
impl IngestService for Intake {
    async fn ingest(
        &self,
        req: Request<IngestRequest>,
    ) -> Result<Response<IngestResponse>, Status> {
        let mut flight = self.flight(&req);
        let item = flight.item(req.into_inner())?;
        let stored = flight.pipeline.clone().oneshot(item).await;
        flight.count(stored).map(|()| Response::new(flight.tally))
    }

    async fn ingest_stream(
        &self,
        req: Request<Streaming<IngestRequest>>,
    ) -> Result<Response<IngestResponse>, Status> {
        let mut flight = self.flight(&req);
        let mut items = req.into_inner();
        let mut ending = self.ending.clone();
        let mut ending = pin!(ending.wait_for(|ending| *ending).fuse());
        let end = poll_fn(|cx| {
            if flight.end.is_none() && ending.as_mut().poll(cx).is_ready() {
                flight.end = Some(Err(refusal::going_away()));
            }
            flight.poll(cx, &mut items)
        });
        match end.await {
            Ok(()) => Ok(Response::new(flight.tally)),
            Err(status) => Err(refusal::after(flight.tally.accepted, status)),
        }
    }
}

// ===== impl Flight =====

impl Flight {
    /// Ready when nothing more comes and all that came are answered for, or one was refused. Those behind it are given up:
    /// what is not with the store yet is not stored.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        items: &mut Streaming<IngestRequest>,
    ) -> Poll<Result<(), Status>> {
        loop {
            while let Some((slot, bytes)) = self.answers.front_mut() {
                let Poll::Ready(told) = slot.poll(cx) else {
                    break;
                };
                self.bytes -= *bytes;
                self.answers.pop_front();
                if let Err(status) = self.count(told) {
                    return Poll::Ready(Err(status));
                }
            }
            match &mut self.end {
                Some(end) if self.answers.is_empty() => {
                    return Poll::Ready(std::mem::replace(end, Ok(())));
                }
                Some(_) => return Poll::Pending,
                None => {}
            }
            if self.take(cx, items).is_break() {
                return Poll::Pending;
            }
        }
    }

    /// Sends what has come on its way, as much as may be. Goes on when answers can be looked at anew.
    fn take(
        &mut self,
        cx: &mut Context<'_>,
        items: &mut Streaming<IngestRequest>,
    ) -> ControlFlow<()> {
        while self.answers.len() < WINDOW && (self.bytes < WINDOW_BYTES || self.answers.is_empty())
        {
            match self.pipeline.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.end = Some(Err(refusal::status(&error)));
                    return ControlFlow::Continue(());
                }
                Poll::Pending => return ControlFlow::Break(()),
            }
            let item = match Pin::new(&mut *items).poll_next(cx) {
                Poll::Ready(Some(Ok(req))) => self.item(req),
                Poll::Ready(Some(Err(status))) => Err(status),
                Poll::Ready(None) => {
                    self.end = Some(Ok(()));
                    return ControlFlow::Continue(());
                }
                Poll::Pending => return ControlFlow::Break(()),
            };
            let item = match item {
                Ok(item) => item,
                Err(status) => {
                    self.end = Some(Err(status));
                    return ControlFlow::Continue(());
                }
            };
            let bytes = item.payload.len();
            self.bytes += bytes;
            // Polled, since it begins then.
            let mut slot = Slot::Waiting(self.pipeline.call(item));
            if let Poll::Ready(told) = slot.poll(cx) {
                let refused = told.is_err();
                slot = Slot::Told(told);
                if refused {
                    // Its turn comes when those before it are answered for.
                    self.end = Some(Ok(()));
                }
            }
            self.answers.push_back((slot, bytes));
            if self.end.is_some() {
                return ControlFlow::Continue(());
            }
        }
        // Full: the front is pending, and wakes.
        ControlFlow::Break(())
    }

    fn item(&self, req: IngestRequest) -> Result<Item, Status> {
        let length = req.id.len();
        if length > LONGEST_ID {
            let what = format!("the id has {length} bytes; {LONGEST_ID} are the most");
            return Err(Status::invalid_argument(what));
        }
        // It is a header and a line further on.
        if req.id.contains(char::is_control) || req.id.trim() != req.id {
            let what = "the id holds a control character, or begins or ends with space";
            return Err(Status::invalid_argument(what));
        }
        Ok(Item {
            id: req.id.into(),
            payload: req.payload.into(),
            priority: self.priority,
            cohort: self.cohort,
        })
    }

    fn count(&mut self, told: Result<Stored, BoxError>) -> Result<(), Status> {
        let stored = told.map_err(|error| refusal::status(&error))?;
        self.tally.accepted += 1;
        self.tally.duplicates += u64::from(stored == Stored::Duplicate);
        Ok(())
    }
}

// ===== impl Slot =====

impl Slot {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stored, BoxError>> {
        match self {
            Self::Waiting(answer) => answer.as_mut().poll(cx),
            Self::Told(told) => Poll::Ready(std::mem::replace(told, Ok(Stored::New))),
        }
    }
}
