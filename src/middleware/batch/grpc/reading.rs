use std::sync::Arc;

use tonic::Status;

use super::error::GrpcStreamError;
use super::pairing::Pairing;
use crate::base::error::BoxError;
use crate::middleware::batch::results::Answers;

/// The answers to one batch, as they come.
pub(super) struct Reading<P, O, R> {
    pairing: Arc<P>,
    /// Whose answers are awaited.
    open: O,
    items: usize,
    found: Vec<(usize, Result<R, BoxError>)>,
    unknown: usize,
}

// ===== impl Reading =====

impl<P, O, R> Reading<P, O, R> {
    pub(super) fn new(pairing: Arc<P>, open: O, items: usize) -> Self {
        Self {
            pairing,
            open,
            items,
            found: Vec::with_capacity(items),
            unknown: 0,
        }
    }

    /// Whether as many answers came as there are items. One whose id is unknown counts: the server means it for an item.
    pub(super) fn is_done(&self) -> bool {
        self.found.len() >= self.items
    }

    /// Whether each answer was for an item, so that no other is to be expected.
    pub(super) fn is_clean(&self) -> bool {
        self.unknown == 0
    }

    pub(super) fn read<Req, A>(&mut self, answer: A)
    where
        P: Pairing<Req, A, Open = O, Response = R>,
    {
        let (position, result) = self.pairing.read(answer, &mut self.open);
        if position.is_none() {
            self.unknown += 1;
        }
        // One for nobody goes beyond the batch, where it is counted.
        let position = position.unwrap_or(self.items);
        self.found.push((position, result.map_err(Into::into)));
    }

    /// What each item gets, when the stream has served them all, was ended by the server (with `OK`), or broke.
    pub(super) fn finish(
        mut self,
        end: Result<(), Status>,
    ) -> Result<Answers<R, BoxError>, GrpcStreamError> {
        let answered = self.found.len() - self.unknown;
        let end = match end {
            Ok(()) if self.found.is_empty() && self.items > 0 => {
                Err(Status::unavailable("the server ended the stream"))
            }
            end => end,
        };
        if let Err(status) = end {
            let error = GrpcStreamError::new(status, answered, self.items);
            if answered == 0 {
                return Err(error);
            }
            let mut open = vec![true; self.items];
            for (position, _) in &self.found {
                if let Some(open) = open.get_mut(*position) {
                    *open = false;
                }
            }
            let open = open.iter().enumerate().filter(|(_, open)| **open);
            let failed = open.map(|(position, _)| (position, Err(error.clone().into())));
            self.found.extend(failed);
        }
        Ok(Answers::of(self.found))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pairing::{ById, Ordered};
    use super::*;
    use crate::base::error::find;
    use crate::middleware::batch::request::Batch;
    use crate::middleware::batch::results::IntoResults;

    type Results = Vec<(usize, Result<u32, BoxError>)>;

    /// Reads `answers` to `items`, and tells what the items get.
    fn read<P>(
        pairing: P,
        items: &[u32],
        answers: &[u32],
        end: Result<(), Status>,
    ) -> Result<Results, GrpcStreamError>
    where
        P: Pairing<u32, u32, Message = u32, Response = u32>,
    {
        let (messages, open) = pairing.ask(Batch::new(items.iter().copied()));
        assert_eq!(messages, items);
        let mut reading = Reading::new(Arc::new(pairing), open, items.len());
        for answer in answers {
            assert!(!reading.is_done());
            reading.read::<u32, u32>(*answer);
        }
        let answers = reading.finish(end)?;
        Ok(answers.into_results(items.len()).collect())
    }

    fn ids() -> impl Pairing<u32, u32, Message = u32, Response = u32> {
        let read = |answer| (answer, Ok::<_, BoxError>(answer * 10));
        ById::new(|req: u32| (req, req), read)
    }

    fn ok(results: &[(usize, Result<u32, BoxError>)]) -> Vec<(usize, u32)> {
        let value = |result: &Result<u32, BoxError>| *result.as_ref().unwrap();
        let results = results.iter();
        results
            .map(|(position, result)| (*position, value(result)))
            .collect()
    }

    #[test]
    fn the_nth_answer_is_the_nth_items() {
        let pairing = Ordered::new(|req| req, |answer: u32| Ok::<_, BoxError>(answer * 10));
        let results = read(pairing, &[7, 7, 5], &[1, 2, 3], Ok(())).unwrap();
        assert_eq!(ok(&results), [(0, 10), (1, 20), (2, 30)]);
    }

    #[test]
    fn an_answer_is_that_of_the_item_with_its_id() {
        let results = read(ids(), &[7, 6, 5], &[5, 7, 6], Ok(())).unwrap();
        assert_eq!(ok(&results), [(2, 50), (0, 70), (1, 60)]);
    }

    #[test]
    fn an_unknown_id_goes_beyond_the_batch_and_its_item_has_no_answer() {
        let results = read(ids(), &[7, 6, 5], &[5, 9, 7], Ok(())).unwrap();
        assert_eq!(ok(&results), [(2, 50), (3, 90), (0, 70)]);
    }

    #[test]
    fn a_stream_that_ends_too_early_leaves_items_without_answer() {
        let results = read(ids(), &[7, 6, 5], &[5], Ok(())).unwrap();
        assert_eq!(ok(&results), [(2, 50)]);
    }

    #[test]
    fn a_stream_that_breaks_fails_those_without_answer() {
        let broken = Err(Status::aborted("why"));
        let results = read(ids(), &[7, 6, 5, 4], &[5, 9], broken).unwrap();
        assert_eq!(ok(&results[..2]), [(2, 50), (4, 90)]);
        let failed: Vec<_> = results[2..].iter().map(|(position, _)| *position).collect();
        assert_eq!(failed, [0, 1, 3]);
        for (_, result) in &results[2..] {
            let error = result.as_ref().unwrap_err();
            let stream = find::<GrpcStreamError>(error.as_ref()).unwrap();
            assert_eq!((stream.answered(), stream.items()), (1, 4));
            let status = find::<Status>(error.as_ref()).unwrap();
            assert_eq!(status.message(), "why");
        }
    }

    #[test]
    fn a_stream_that_answers_nobody_fails_the_batch() {
        let broken = || Err(Status::aborted("why"));
        let error = read(ids(), &[7, 6], &[], broken()).unwrap_err();
        assert_eq!(error.status().code(), tonic::Code::Aborted);
        let error = read(ids(), &[7, 6], &[9], broken()).unwrap_err();
        assert_eq!((error.answered(), error.items()), (0, 2));
        let error = read(ids(), &[7, 6], &[], Ok(())).unwrap_err();
        assert_eq!(error.status().code(), tonic::Code::Unavailable);
        assert_eq!(
            error.to_string(),
            "the stream ended after 0 of 2 answers with Unavailable: the server ended the stream; the server may have done \
             the rest, send it again only if that does no harm"
        );
    }
}
