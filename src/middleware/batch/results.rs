use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::hash::Hash;
use std::iter;

use crate::base::error::{BoxError, SharedError};

/// The answer to a batch, as one answer for each of its items.
///
/// | type | whose answer is whose |
/// |---|---|
/// | `Vec<Result<T, E>>` | in the order of the items |
/// | `HashMap<usize, Result<T, E>>`, `BTreeMap` | by position in the batch |
/// | [`Answers`] | by a key of the items: see [`Keys`] |
/// | [`All`] | one for all |
///
/// An item that has none fails with [`Reason::Missing`](crate::error::Reason::Missing), and the others have theirs. Answers
/// for which there is no item, and second ones for the same, are dropped and counted.
pub trait IntoResults {
    /// What one item's caller gets.
    type Response;

    /// Why one item failed.
    type Error: Into<BoxError>;

    /// The answers to a batch of so many `items`, each with the position of its item.
    fn into_results(
        self,
        items: usize,
    ) -> impl Iterator<Item = (usize, Result<Self::Response, Self::Error>)>;
}

/// One answer for all items of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct All<T>(pub T);

/// What each item of a batch asked for: puts answers that come by key in the order of the items.
///
/// ```
/// use std::collections::HashMap;
/// use tower_flow::batch::{Batch, IntoResults};
///
/// let batch = Batch::new(["a", "b", "a"]);
/// let keys = batch.keys(|key| *key);
/// let rows = HashMap::from([("a", 1), ("c", 3)]);
/// let mut answers: Vec<_> = keys.answer(rows).into_results(3).collect();
/// answers.sort();
/// // Both who asked for a get it; b is missing; nobody asked for c.
/// assert_eq!(answers[..2], [(0, Ok(1)), (2, Ok(1))]);
/// assert_eq!(answers.len(), 3);
/// ```
#[derive(Debug, Clone)]
pub struct Keys<Q> {
    keys: Vec<Q>,
}

/// Answers that were found by key, made by [`Keys`], or that came over a stream.
#[derive(Debug, Clone)]
pub struct Answers<T, E = Infallible> {
    found: Vec<(usize, Result<T, E>)>,
}

// ===== impl IntoResults =====

impl<T, E: Into<BoxError>> IntoResults for Vec<Result<T, E>> {
    type Response = T;
    type Error = E;

    fn into_results(self, _: usize) -> impl Iterator<Item = (usize, Result<T, E>)> {
        self.into_iter().enumerate()
    }
}

impl<T, E: Into<BoxError>, H> IntoResults for HashMap<usize, Result<T, E>, H> {
    type Response = T;
    type Error = E;

    fn into_results(self, _: usize) -> impl Iterator<Item = (usize, Result<T, E>)> {
        self.into_iter()
    }
}

impl<T, E: Into<BoxError>> IntoResults for BTreeMap<usize, Result<T, E>> {
    type Response = T;
    type Error = E;

    fn into_results(self, _: usize) -> impl Iterator<Item = (usize, Result<T, E>)> {
        self.into_iter()
    }
}

impl<T: Clone> IntoResults for All<T> {
    type Response = T;
    type Error = Infallible;

    fn into_results(self, items: usize) -> impl Iterator<Item = (usize, Result<T, Infallible>)> {
        iter::repeat_n(self.0, items).map(Ok).enumerate()
    }
}

impl<T, E: Into<BoxError>> IntoResults for Answers<T, E> {
    type Response = T;
    type Error = E;

    fn into_results(self, _: usize) -> impl Iterator<Item = (usize, Result<T, E>)> {
        self.found.into_iter()
    }
}

// ===== impl Answers =====

impl<T, E> Answers<T, E> {
    /// Answers of which each has the position of its item.
    #[cfg(feature = "tonic")]
    pub(super) fn of(found: Vec<(usize, Result<T, E>)>) -> Self {
        Self { found }
    }
}

// ===== impl Keys =====

impl<Q: Hash + Eq> Keys<Q> {
    pub(super) fn new(keys: impl Iterator<Item = Q>) -> Self {
        Self {
            keys: keys.collect(),
        }
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys, in the order of the items; the same one as often as it was asked for.
    pub fn iter(&self) -> std::slice::Iter<'_, Q> {
        self.keys.iter()
    }

    /// Gives each of the `found` values to all who asked for its key.
    pub fn answer<T: Clone>(self, found: impl IntoIterator<Item = (Q, T)>) -> Answers<T> {
        let found = found.into_iter().map(|(key, value)| (key, Ok(value)));
        self.give(found, |value| match value {
            Ok(value) => (Ok(value.clone()), Ok(value)),
        })
    }

    /// Gives each of the `found` results to all who asked for its key; an error to several as a [`SharedError`].
    pub fn results<T: Clone, E: Into<BoxError>>(
        self,
        found: impl IntoIterator<Item = (Q, Result<T, E>)>,
    ) -> Answers<T, BoxError> {
        let found = found
            .into_iter()
            .map(|(key, result)| (key, result.map_err(Into::into)));
        self.give(found, |result| match result {
            Ok(value) => (Ok(value.clone()), Ok(value)),
            Err(error) => {
                let error = match error.downcast::<SharedError>() {
                    Ok(shared) => *shared,
                    Err(error) => SharedError::new(error),
                };
                (Err(error.clone().into()), Err(error.into()))
            }
        })
    }

    /// `twice` makes two of one.
    fn give<T, E>(
        self,
        found: impl Iterator<Item = (Q, Result<T, E>)>,
        twice: impl Fn(Result<T, E>) -> (Result<T, E>, Result<T, E>),
    ) -> Answers<T, E> {
        let mut positions: HashMap<&Q, Vec<usize>> = HashMap::with_capacity(self.keys.len());
        for (position, key) in self.keys.iter().enumerate() {
            positions.entry(key).or_default().push(position);
        }
        // Where what nobody asked for goes: beyond the batch, where it is counted.
        let beyond = self.keys.len();
        let mut answers = Vec::with_capacity(self.keys.len());
        for (key, mut result) in found {
            match positions.get(&key).map(Vec::as_slice) {
                Some([others @ .., last]) => {
                    for other in others {
                        let (one, another) = twice(result);
                        answers.push((*other, one));
                        result = another;
                    }
                    answers.push((*last, result));
                }
                _ => answers.push((beyond, result)),
            }
        }
        Answers { found: answers }
    }
}

impl<'a, Q: Hash + Eq> IntoIterator for &'a Keys<Q> {
    type Item = &'a Q;
    type IntoIter = std::slice::Iter<'a, Q>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
