//! The change feed: who listens gets every kept change, in order, through a bounded queue of their own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use agl_types::{EventQuery, FeedItem, Gap, StoreEvent};
use futures_util::stream::{self, BoxStream};
use tokio::sync::Notify;

use crate::Error;
use crate::signals::lock;

/// How many of the latest events are remembered, for those who come back and resume.
const REMEMBERED: usize = 16_384;

/// How many events may wait for one subscriber; what comes on top is counted and dropped.
const PENDING: usize = 4_096;

/// The events of a store, as they come.
pub type Subscription = BoxStream<'static, Result<FeedItem, Error>>;

/// The feed of one store.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Tells the events of this opening of the store from those of others.
    epoch: u32,
    board: Mutex<Board>,
}

#[derive(Debug, Default)]
struct Board {
    /// The number of the last event, counted from 1; the last ones, as far as remembered, are in `latest`.
    last: u64,
    latest: VecDeque<Arc<StoreEvent>>,
    subscribers: Vec<Arc<Subscriber>>,
    /// What was dropped on the way to subscribers, those who left included.
    dropped: u64,
}

#[derive(Debug)]
struct Subscriber {
    query: EventQuery,
    pending: Mutex<Pending>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    items: VecDeque<Slot>,
    /// Dropped since the last item.
    dropped: u64,
}

#[derive(Debug)]
enum Slot {
    Start(u64),
    Event(u64, Arc<StoreEvent>),
    Gap(Gap),
}

/// How the feed is doing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FeedFigures {
    pub(crate) subscribers: u64,
    /// Events that wait for the subscriber who is furthest behind.
    pub(crate) lag: u64,
    pub(crate) dropped: u64,
}

fn fell_behind(dropped: u64) -> Slot {
    let reason = "the subscriber did not keep up with the store".to_owned();
    Slot::Gap(Gap { dropped: Some(dropped), reason })
}

impl Subscriber {
    /// Whether the event was dropped.
    fn offer(&self, number: u64, event: &Arc<StoreEvent>) -> bool {
        let mut pending = lock(&self.pending);
        if pending.items.len() >= PENDING {
            pending.dropped += 1;
            return true;
        }
        if pending.dropped > 0 {
            let dropped = std::mem::take(&mut pending.dropped);
            pending.items.push_back(fell_behind(dropped));
        }
        pending.items.push_back(Slot::Event(number, Arc::clone(event)));
        drop(pending);
        self.news.notify_one();
        false
    }

    fn take(&self) -> Option<Slot> {
        let mut pending = lock(&self.pending);
        if let Some(slot) = pending.items.pop_front() {
            return Some(slot);
        }
        let dropped = std::mem::take(&mut pending.dropped);
        (dropped > 0).then(|| fell_behind(dropped))
    }
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self { epoch: rand::random(), board: Mutex::default() }
    }

    /// Hands events to those who follow them, and remembers them for a while.
    pub(crate) fn publish(&self, events: &[Arc<StoreEvent>]) {
        if events.is_empty() {
            return;
        }
        let mut board = lock(&self.board);
        for event in events {
            board.last += 1;
            let number = board.last;
            if board.latest.len() >= REMEMBERED {
                board.latest.pop_front();
            }
            board.latest.push_back(Arc::clone(event));
            let mut dropped = 0;
            for subscriber in &board.subscribers {
                if subscriber.query.matches(event) && subscriber.offer(number, event) {
                    dropped += 1;
                }
            }
            board.dropped += dropped;
        }
    }

    pub(crate) fn figures(&self) -> FeedFigures {
        let board = lock(&self.board);
        let pending = |subscriber: &Arc<Subscriber>| lock(&subscriber.pending).items.len();
        let lag = board.subscribers.iter().map(pending).max().unwrap_or_default();
        FeedFigures {
            subscribers: u64::try_from(board.subscribers.len()).unwrap_or(u64::MAX),
            lag: u64::try_from(lag).unwrap_or(u64::MAX),
            dropped: board.dropped,
        }
    }

    /// Follows events, from the next one or from the one after `query.after`.
    pub(crate) fn subscribe(feed: &Arc<Self>, query: EventQuery) -> Result<Subscription, Error> {
        let after = query.after.as_deref().map(parse_id).transpose()?;
        let mut board = lock(&feed.board);
        let mut pending = Pending::default();
        match after {
            Some((epoch, number)) => feed.catch_up(&board, &query, epoch, number, &mut pending),
            None => pending.items.push_back(Slot::Start(board.last)),
        }
        let subscriber = Arc::new(Subscriber { query, pending: Mutex::new(pending), news: Notify::new() });
        board.subscribers.push(Arc::clone(&subscriber));
        drop(board);
        let listener = Listener { feed: Arc::clone(feed), subscriber };
        Ok(Box::pin(stream::unfold(listener, |listener| async move {
            let item = listener.next().await;
            Some((Ok(item), listener))
        })))
    }

    /// What a subscriber who has seen everything up to event `number` has missed.
    fn catch_up(&self, board: &Board, query: &EventQuery, epoch: u32, number: u64, pending: &mut Pending) {
        if epoch != self.epoch || number > board.last {
            let reason = "the store was opened anew since that event".to_owned();
            pending.items.push_back(Slot::Gap(Gap { dropped: None, reason }));
            pending.items.push_back(Slot::Start(board.last));
            return;
        }
        let oldest = board.last + 1 - u64::try_from(board.latest.len()).unwrap_or_default();
        if number + 1 < oldest {
            // Which of them the query was about is forgotten with them.
            let reason = format!("of the {} events since, the oldest are forgotten", board.last - number);
            pending.items.push_back(Slot::Gap(Gap { dropped: None, reason }));
        }
        for (number, event) in (oldest..).zip(&board.latest).skip_while(|(other, _)| *other <= number) {
            if query.matches(event) {
                pending.items.push_back(Slot::Event(number, Arc::clone(event)));
            }
        }
    }

    fn id(&self, number: u64) -> String {
        format!("{:08x}-{number}", self.epoch)
    }
}

/// The epoch and the number in the id of an event.
fn parse_id(id: &str) -> Result<(u32, u64), Error> {
    let parts = id.split_once('-').and_then(|(epoch, number)| {
        Some((u32::from_str_radix(epoch, 16).ok()?, number.parse::<u64>().ok()?))
    });
    parts.ok_or_else(|| {
        Error::invalid("after", format!("after must be the id of an event as the feed gave it, not {id:?}"))
    })
}

/// Takes itself off the board when dropped.
#[derive(Debug)]
struct Listener {
    feed: Arc<Feed>,
    subscriber: Arc<Subscriber>,
}

impl Listener {
    async fn next(&self) -> FeedItem {
        loop {
            match self.subscriber.take() {
                Some(Slot::Start(number)) => return FeedItem::Start { id: self.feed.id(number) },
                Some(Slot::Event(number, event)) => {
                    return FeedItem::Event { id: self.feed.id(number), event: StoreEvent::clone(&event) };
                }
                Some(Slot::Gap(gap)) => return FeedItem::Gap(gap),
                None => self.subscriber.news.notified().await,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.feed.board).subscribers.retain(|other| !Arc::ptr_eq(other, &self.subscriber));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;

    fn resources(version: u32) -> Arc<StoreEvent> {
        Arc::new(StoreEvent::Resources { resources_id: "rs".to_owned(), version })
    }

    fn ready(subscription: &mut Subscription) -> Option<FeedItem> {
        subscription.next().now_or_never().flatten().map(Result::unwrap)
    }

    fn version(item: &FeedItem) -> u32 {
        match item {
            FeedItem::Event { event: StoreEvent::Resources { version, .. }, .. } => *version,
            other => panic!("{other:?}"),
        }
    }

    /// Whoever does not read gets as much as fits, and is told how much did not.
    #[test]
    fn what_does_not_fit_is_counted() {
        let feed = Arc::new(Feed::new());
        let mut slow = Feed::subscribe(&feed, EventQuery::default()).unwrap();
        assert!(matches!(ready(&mut slow), Some(FeedItem::Start { .. })));
        let capacity = u32::try_from(PENDING).unwrap();
        for number in 0..capacity + 7 {
            feed.publish(&[resources(number)]);
        }
        assert_eq!(feed.figures().dropped, 7);
        for number in 0..capacity {
            assert_eq!(version(&ready(&mut slow).unwrap()), number);
        }
        let Some(FeedItem::Gap(gap)) = ready(&mut slow) else { panic!("no gap") };
        assert_eq!(gap.dropped, Some(7));
        assert_eq!(ready(&mut slow), None);
        feed.publish(&[resources(1)]);
        assert_eq!(version(&ready(&mut slow).unwrap()), 1);
        drop(slow);
        assert_eq!(feed.figures().subscribers, 0);
    }

    /// Resuming goes on right after the event named, and says so where that is not possible.
    #[test]
    fn a_subscriber_resumes_where_it_left() {
        let feed = Arc::new(Feed::new());
        let mut first = Feed::subscribe(&feed, EventQuery::default()).unwrap();
        let Some(FeedItem::Start { id: start }) = ready(&mut first) else { panic!("no start") };
        feed.publish(&[resources(1), resources(2), resources(3)]);
        let Some(FeedItem::Event { id, .. }) = ready(&mut first) else { panic!("no event") };
        let resume = |after: &str| EventQuery { after: Some(after.to_owned()), ..EventQuery::default() };
        let mut second = Feed::subscribe(&feed, resume(&id)).unwrap();
        let seen: Vec<u32> = std::iter::from_fn(|| ready(&mut second)).map(|item| version(&item)).collect();
        assert_eq!(seen, [2, 3]);
        let mut whole = Feed::subscribe(&feed, resume(&start)).unwrap();
        assert_eq!(version(&ready(&mut whole).unwrap()), 1);
        let other = Arc::new(Feed { epoch: feed.epoch.wrapping_add(1), board: Mutex::default() });
        let mut elsewhere = Feed::subscribe(&other, resume(&id)).unwrap();
        assert!(matches!(ready(&mut elsewhere), Some(FeedItem::Gap(Gap { dropped: None, .. }))));
        for number in 0..u32::try_from(REMEMBERED).unwrap() + 5 {
            feed.publish(&[resources(number)]);
        }
        let mut late = Feed::subscribe(&feed, resume(&id)).unwrap();
        assert!(matches!(ready(&mut late), Some(FeedItem::Gap(Gap { dropped: None, .. }))));
        assert_eq!(version(&ready(&mut late).unwrap()), 5);
        assert!(
            matches!(Feed::subscribe(&feed, resume("x")), Err(Error::Invalid { field, .. }) if field == "after")
        );
    }
}
