//! Who uses which page of the key/value cache, and which pages hold the beginning of a text that
//! may be asked about again.

use crate::kernels::attention::PAGE;
use std::collections::{HashMap, VecDeque};

/// A full page's content, exactly: the pages before it (as the number of the chain's node) and its
/// own tokens.
type Content = (u64, [u32; PAGE]);

/// Hands out pages, counts their users, and remembers the content of full ones until the room is
/// needed.
#[derive(Debug)]
pub(crate) struct PagePool {
    capacity: usize,
    /// Pages ever handed out: `0..uses.len()`.
    uses: Vec<u32>,
    /// Unused pages without content.
    blank: Vec<u32>,
    /// What a page holds, and the number of that node.
    content: Vec<Option<(Content, u64)>>,
    known: HashMap<Content, u32>,
    /// Unused pages with content, in the order they fell idle; an entry counts only if its number
    /// is still the page's.
    idle: VecDeque<(u32, u64)>,
    idle_since: Vec<u64>,
    next_number: u64,
}

impl PagePool {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            uses: Vec::new(),
            blank: Vec::new(),
            content: Vec::new(),
            known: HashMap::new(),
            idle: VecDeque::new(),
            idle_since: Vec::new(),
            next_number: 1,
        }
    }

    /// Number of pages that must exist.
    pub(crate) fn len(&self) -> usize {
        self.uses.len()
    }

    /// Number of pages that nobody uses.
    pub(crate) fn available(&self) -> usize {
        self.capacity - self.uses.iter().filter(|&&uses| uses > 0).count()
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// A page for one user, its content undefined; `None` if all are in use.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let page = self.blank.pop().or_else(|| self.grow()).or_else(|| self.recycle())?;
        self.uses[page as usize] = 1;
        Some(page)
    }

    fn grow(&mut self) -> Option<u32> {
        if self.uses.len() == self.capacity {
            return None;
        }
        self.uses.push(0);
        self.content.push(None);
        self.idle_since.push(0);
        Some(self.uses.len() as u32 - 1)
    }

    /// The page that has been idle longest, its content forgotten.
    fn recycle(&mut self) -> Option<u32> {
        while let Some((page, since)) = self.idle.pop_front() {
            let index = page as usize;
            if self.uses[index] == 0 && self.idle_since[index] == since {
                if let Some((content, _)) = self.content[index].take() {
                    self.known.remove(&content);
                }
                return Some(page);
            }
        }
        None
    }

    /// Adds a user to a page.
    pub(crate) fn share(&mut self, page: u32) {
        self.uses[page as usize] += 1;
    }

    /// Takes a user from a page.
    pub(crate) fn release(&mut self, page: u32) {
        let index = page as usize;
        self.uses[index] -= 1;
        if self.uses[index] > 0 {
            return;
        }
        if self.content[index].is_some() {
            let number = self.number();
            self.idle_since[index] = number;
            self.idle.push_back((page, number));
            if self.idle.len() > 2 * self.capacity {
                let (uses, idle_since) = (&self.uses, &self.idle_since);
                self.idle
                    .retain(|&(page, since)| uses[page as usize] == 0 && idle_since[page as usize] == since);
            }
        } else {
            self.blank.push(page);
        }
    }

    /// Records that `pages` hold `tokens` (whole pages of them), so that [`Self::find`] knows.
    pub(crate) fn remember(&mut self, tokens: &[u32], pages: &[u32]) {
        let mut node = 0;
        for (chunk, &page) in tokens.as_chunks::<PAGE>().0.iter().zip(pages) {
            let content = (node, *chunk);
            node = match (self.known.get(&content), &self.content[page as usize]) {
                (Some(&known), _) => match &self.content[known as usize] {
                    Some((_, number)) => *number,
                    None => return,
                },
                // Holds something under another chain; leave it at that.
                (None, Some(_)) => return,
                (None, None) => {
                    let number = self.number();
                    self.known.insert(content, page);
                    self.content[page as usize] = Some((content, number));
                    number
                }
            };
        }
    }

    /// The pages that hold the longest known beginning of `tokens`; the caller becomes a user.
    pub(crate) fn find(&mut self, tokens: &[u32]) -> Vec<u32> {
        let mut node = 0;
        let mut pages = Vec::new();
        for chunk in tokens.as_chunks::<PAGE>().0 {
            let Some(&page) = self.known.get(&(node, *chunk)) else { break };
            let Some((_, number)) = self.content[page as usize] else { break };
            node = number;
            self.share(page);
            pages.push(page);
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_found_until_the_room_is_needed() {
        let mut pool = PagePool::new(3);
        let text: Vec<u32> = (0..40).collect();
        let pages: Vec<u32> = (0..2).filter_map(|_| pool.take()).collect();
        pool.remember(&text, &pages);
        let found = pool.find(&text);
        assert_eq!(found, pages);
        let mut other = text.clone();
        other[20] = 99;
        let first = pool.find(&other);
        assert_eq!(first, pages[..1]);
        for page in pages.iter().chain(&found).chain(&first) {
            pool.release(*page);
        }
        assert_eq!(pool.available(), 3);
        // The blank page goes first, then the idle ones in the order they fell idle, then none.
        let taken: Vec<Option<u32>> = (0..4).map(|_| pool.take()).collect();
        assert_eq!(taken, [Some(2), Some(pages[1]), Some(pages[0]), None]);
        assert_eq!(pool.find(&text), Vec::<u32>::new());
    }
}
