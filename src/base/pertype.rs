//! One value for each type that asks, found without a lock.
//!
//! A layer knows nothing of the services it will wrap, yet all services of one type share what it keeps for them. It keeps
//! that here: typed for those who know the type, and as `V` for those who do not, such as its handle.

use std::any::Any;
use std::sync::{Arc, OnceLock};

pub(crate) struct PerType<V: ?Sized> {
    first: OnceLock<Box<Node<V>>>,
}

struct Node<V: ?Sized> {
    value: Arc<dyn Any + Send + Sync>,
    view: Arc<V>,
    next: OnceLock<Box<Node<V>>>,
}

impl<V: ?Sized> PerType<V> {
    pub(crate) fn new() -> Self {
        Self {
            first: OnceLock::new(),
        }
    }

    /// The value of type `T`, if there is one.
    #[cfg(feature = "batch")]
    #[inline]
    pub(crate) fn find<T: Any>(&self) -> Option<&T> {
        let mut place = &self.first;
        loop {
            let node = place.get()?;
            match node.value.downcast_ref() {
                Some(value) => return Some(value),
                None => place = &node.next,
            }
        }
    }

    /// The value of type `T`; made by `make` when there is none, and seen as `view` makes of it.
    #[inline]
    pub(crate) fn get<T: Any + Send + Sync>(
        &self,
        make: impl FnOnce() -> Arc<T>,
        view: fn(Arc<T>) -> Arc<V>,
    ) -> &T {
        let mut make = Some(make);
        let mut place = &self.first;
        loop {
            let node = place.get_or_init(|| {
                let make = make.take().expect("a place that is filled ends the walk");
                let value = make();
                Box::new(Node {
                    value: value.clone(),
                    view: view(value),
                    next: OnceLock::new(),
                })
            });
            match node.value.downcast_ref() {
                Some(value) => return value,
                None => place = &node.next,
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &V> {
        let mut place = &self.first;
        std::iter::from_fn(move || {
            let node = place.get()?;
            place = &node.next;
            Some(&*node.view)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fmt::Display;

    #[test]
    fn there_is_one_for_each_type() {
        let values: PerType<dyn Display> = PerType::new();
        assert_eq!(*values.get(|| Arc::new(7u32), |value| value), 7);
        assert_eq!(*values.get(|| Arc::new("seven"), |value| value), "seven");
        assert_eq!(*values.get(|| Arc::new(8u32), |value| value), 7);
        let seen: Vec<_> = values.iter().map(ToString::to_string).collect();
        assert_eq!(seen, ["7", "seven"]);
    }
}
