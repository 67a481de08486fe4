//! The feed of events over HTTP, resumed by itself where a connection breaks.

use std::collections::VecDeque;
use std::time::Duration;

use agl_store::{Error, Subscription};
use agl_types::{EventQuery, FeedItem, StoreEvent};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};

use crate::Client;
use crate::sse::{SseEvent, SseReader};

/// How long a stream may be silent: the server shows a sign of life more often.
const SILENCE: Duration = Duration::from_secs(45);

/// The pause before a stream that was opened and broke is opened again.
const PAUSE: Duration = Duration::from_millis(200);

/// Follows the server's events. The first connection is made here, so that what is wrong with the query is told.
pub(crate) async fn subscribe(client: Client, query: EventQuery) -> Result<Subscription, Error> {
    if query.kind_in.as_ref().is_some_and(Vec::is_empty)
        || query.rollout_id_in.as_ref().is_some_and(Vec::is_empty)
    {
        // There is no way to say so in an address.
        return Ok(stream::pending().boxed());
    }
    let chunks = open(&client, &query).await?;
    let follower = Follower {
        client,
        query,
        chunks: Some(chunks),
        reader: SseReader::default(),
        items: VecDeque::new(),
    };
    Ok(Box::pin(stream::try_unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        Ok(Some((item, follower)))
    })))
}

type Chunks = BoxStream<'static, reqwest::Result<Bytes>>;

async fn open(client: &Client, query: &EventQuery) -> Result<Chunks, Error> {
    let EventQuery { kind_in, rollout_id_in, span_name, after } = query;
    let kinds = kind_in.iter().flatten().map(|kind| ("kind_in", kind.to_string()));
    let rollouts = rollout_id_in.iter().flatten().map(|id| ("rollout_id_in", id.clone()));
    let names = span_name.iter().map(|name| ("span_name", name.clone()));
    let ids = after.iter().map(|id| ("after", id.clone()));
    let pairs: Vec<(&str, String)> = kinds.chain(rollouts).chain(names).chain(ids).collect();
    Ok(client.transport.open(&["events"], &pairs).await?.bytes_stream().boxed())
}

struct Follower {
    client: Client,
    query: EventQuery,
    /// The connection; none when it has broken.
    chunks: Option<Chunks>,
    reader: SseReader,
    items: VecDeque<FeedItem>,
}

impl Follower {
    async fn next(&mut self) -> Result<FeedItem, Error> {
        loop {
            if let Some(item) = self.items.pop_front() {
                if let FeedItem::Event { id, .. } | FeedItem::Start { id } = &item {
                    self.query.after = Some(id.clone());
                }
                return Ok(item);
            }
            let Some(chunks) = &mut self.chunks else {
                self.reader = SseReader::default();
                self.chunks = Some(open(&self.client, &self.query).await?);
                continue;
            };
            match tokio::time::timeout(SILENCE, chunks.next()).await {
                Ok(Some(Ok(bytes))) => {
                    for event in self.reader.feed(&bytes) {
                        self.items.push_back(read(event)?);
                    }
                }
                Ok(Some(Err(_)) | None) | Err(_) => {
                    tracing::debug!("the feed of events broke off; resuming");
                    self.chunks = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

fn read(event: SseEvent) -> Result<FeedItem, Error> {
    let odd =
        |error: serde_json::Error| Error::backend(format!("an event of the feed cannot be read: {error}"));
    if event.name == "gap" {
        return Ok(FeedItem::Gap(serde_json::from_str(&event.data).map_err(odd)?));
    }
    let id = event.id.unwrap_or_default();
    if event.name == "start" {
        return Ok(FeedItem::Start { id });
    }
    Ok(FeedItem::Event { id, event: serde_json::from_str::<StoreEvent>(&event.data).map_err(odd)? })
}
