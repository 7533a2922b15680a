//! A list through places that own its links, so that whatever is in the middle leaves in one step.

/// No place.
pub(super) const NONE: u32 = u32::MAX;

/// The links of a place: in one list at a time, or in none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    before: u32,
    after: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    first: u32,
    last: u32,
    len: usize,
}

/// Where the links are.
pub(super) trait Linked {
    fn links(&mut self, place: u32) -> &mut Links;
}

impl Default for Links {
    fn default() -> Self {
        Self {
            before: NONE,
            after: NONE,
        }
    }
}

impl Default for List {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
            len: 0,
        }
    }
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn first(&self) -> Option<u32> {
        Some(self.first).filter(|place| *place != NONE)
    }

    pub(super) fn push_back(&mut self, at: &mut impl Linked, place: u32) {
        *at.links(place) = Links {
            before: self.last,
            after: NONE,
        };
        match self.last {
            NONE => self.first = place,
            last => at.links(last).after = place,
        }
        self.last = place;
        self.len += 1;
    }

    /// `place` is in this list.
    pub(super) fn remove(&mut self, at: &mut impl Linked, place: u32) {
        let Links { before, after } = std::mem::take(at.links(place));
        match before {
            NONE => self.first = after,
            before => at.links(before).after = after,
        }
        match after {
            NONE => self.last = before,
            after => at.links(after).before = before,
        }
        self.len -= 1;
    }

    pub(super) fn pop_front(&mut self, at: &mut impl Linked) -> Option<u32> {
        let first = self.first()?;
        self.remove(at, first);
        Some(first)
    }

    /// What comes after `place` in its list.
    pub(super) fn after(at: &mut impl Linked, place: u32) -> Option<u32> {
        Some(at.links(place).after).filter(|place| *place != NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::VecDeque;

    use proptest::prelude::*;

    impl Linked for Vec<Links> {
        fn links(&mut self, place: u32) -> &mut Links {
            &mut self[place as usize]
        }
    }

    fn places(list: &List, at: &mut Vec<Links>) -> Vec<u32> {
        let mut found = Vec::new();
        let mut next = list.first();
        while let Some(place) = next {
            found.push(place);
            next = List::after(at, place);
        }
        assert_eq!(found.len(), list.len());
        assert_eq!(list.last, found.last().copied().unwrap_or(NONE));
        found
    }

    proptest! {
        #[test]
        fn it_is_a_queue_whose_middle_may_leave(steps in proptest::collection::vec((0u8..3, 0u32..16), 0..200)) {
            let mut at = vec![Links::default(); 16];
            let (mut list, mut model) = (List::default(), VecDeque::new());
            for (step, place) in steps {
                let inside = model.contains(&place);
                match step {
                    0 if !inside => {
                        list.push_back(&mut at, place);
                        model.push_back(place);
                    }
                    1 if inside => {
                        list.remove(&mut at, place);
                        model.retain(|other| *other != place);
                    }
                    2 => prop_assert_eq!(list.pop_front(&mut at), model.pop_front()),
                    _ => {}
                }
                prop_assert_eq!(places(&list, &mut at), model.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
