//! What the client does when the server is not well. The servers here are real ones that misbehave on purpose.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_server::ServerOptions;
use agl_store::{Error, MemoryStore, SpanDraft, Store};
use agl_types::{
    AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, Patch, Span, SpanQuery, StartRollout, WaitRequest,
};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;

fn impatient() -> ClientOptions {
    ClientOptions {
        max_outage: Duration::from_millis(300),
        first_pause: Duration::from_millis(10),
        ..ClientOptions::default()
    }
}

fn client(address: SocketAddr, options: ClientOptions) -> Client {
    Client::new(&format!("http://{address}"), options).unwrap()
}

/// What happens to the first requests of a faulty server.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Answered so, and not carried out.
    Refused(StatusCode),
    /// Carried out, but the answer is lost.
    AnswerLost,
}

/// A real server whose first `faulty` requests go wrong; counts all of them.
async fn faulty_server(store: Arc<dyn Store>, fault: Fault, faulty: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let app = agl_server::router(store, &ServerOptions::default());
    let app = app.layer(from_fn(move |request: Request, next: Next| {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        async move {
            match fault {
                Fault::Refused(status) if number < faulty => status.into_response(),
                Fault::AnswerLost if number < faulty => {
                    next.run(request).await;
                    // A status that says "the way to the server failed", as a proxy would.
                    StatusCode::BAD_GATEWAY.into_response()
                }
                _ => next.run(request).await,
            }
        }
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, requests)
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

/// A server that takes spans one by one only and knows no PATCH, as that of 0.3; counts what it refused.
#[tokio::test]
async fn a_server_of_0_3_will_do() {
    let refusals = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&refusals);
    let app = agl_server::router(memory(), &ServerOptions::default());
    let app = app.layer(from_fn(move |request: Request, next: Next| {
        let is_newer = request.uri().path().ends_with("/batch") || request.method() == Method::PATCH;
        counter.fetch_add(usize::from(is_newer), Ordering::SeqCst);
        async move {
            if is_newer { StatusCode::METHOD_NOT_ALLOWED.into_response() } else { next.run(request).await }
        }
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(listener.local_addr().unwrap(), impatient());
    tokio::spawn(async move { axum::serve(listener, app).await });

    let attempt = client.start_rollout(StartRollout::default()).await.unwrap().attempt;
    let draft = |number: u64, place: Option<i64>| {
        let span =
            Span::new("s", agl_types::ids::trace_id(1, number), agl_types::ids::span_id(number), 1.0, 2.0);
        let span = span.placed(&attempt.rollout_id, &attempt.attempt_id, place.unwrap_or_default());
        SpanDraft { span, has_sequence_id: place.is_some() }
    };
    let first = client.add_span_drafts(vec![draft(1, Some(4)), draft(2, None)]).await.unwrap();
    assert_eq!(first.iter().map(|span| span.sequence_id).collect::<Vec<_>>(), [4, 5]);
    let second = client.add_span_drafts(vec![draft(2, None), draft(3, None)]).await.unwrap();
    assert_eq!(second.iter().map(|span| span.sequence_id).collect::<Vec<_>>(), [7]);
    assert_eq!(refusals.load(Ordering::SeqCst), 1, "the lack of batches is remembered");

    let place = (attempt.rollout_id.as_str(), attempt.attempt_id.as_str());
    assert_eq!(client.get_next_span_sequence_id(place.0, place.1).await.unwrap(), 8);
    let update = AttemptUpdate { status: AttemptStatus::Succeeded.into(), ..AttemptUpdate::default() };
    let updated = client.update_attempt(place.0, place.1, update).await.unwrap();
    assert_eq!(updated.status, AttemptStatus::Succeeded);
    let update = AttemptUpdate { worker_id: Patch::Set(None), ..AttemptUpdate::default() };
    let error = client.update_attempt(place.0, place.1, update).await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { message } if message.contains("405")), "{error:?}");
}

/// An address at which nobody listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_dead_server_is_no_empty_queue() {
    let client = client(nowhere().await, impatient());
    let error = client.dequeue_rollout(None).await.unwrap_err();
    let Error::Unavailable { message, elapsed } = &error else { panic!("not an outage: {error:?}") };
    assert!(*elapsed >= Duration::from_millis(300), "{elapsed:?}");
    assert!(message.contains("/v1/agl/queues/rollouts/dequeue") && message.contains("times"), "{message}");
    assert!(message.to_lowercase().contains("refused"), "{message}");
}

#[tokio::test]
async fn no_patience_means_one_try() {
    let (address, requests) =
        faulty_server(memory(), Fault::Refused(StatusCode::SERVICE_UNAVAILABLE), usize::MAX).await;
    let options = ClientOptions { max_outage: Duration::ZERO, ..impatient() };
    let error = client(address, options).statistics().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    for status in [408, 429, 500, 502, 503, 504] {
        let status = StatusCode::from_u16(status).unwrap();
        let (address, requests) = faulty_server(memory(), Fault::Refused(status), 3).await;
        client(address, ClientOptions { max_outage: Duration::from_secs(60), ..impatient() })
            .statistics()
            .await
            .unwrap();
        assert_eq!(requests.load(Ordering::SeqCst), 4, "{status}");
    }
}

#[tokio::test]
async fn what_was_decided_is_not_tried_again() {
    for status in [400, 401, 403, 404, 405, 422, 501] {
        let status = StatusCode::from_u16(status).unwrap();
        let (address, requests) = faulty_server(memory(), Fault::Refused(status), 1).await;
        client(address, impatient()).statistics().await.unwrap_err();
        assert_eq!(requests.load(Ordering::SeqCst), 1, "{status}");
    }
}

#[tokio::test]
async fn a_server_with_an_error_of_its_own_is_asked_four_times() {
    let fault = Fault::Refused(StatusCode::INTERNAL_SERVER_ERROR);
    let (address, requests) = faulty_server(memory(), fault, usize::MAX).await;
    let options = ClientOptions { max_outage: Duration::from_secs(60), ..impatient() };
    let error = client(address, options).statistics().await.unwrap_err();
    assert!(matches!(error, Error::Backend { .. }), "{error:?}");
    assert_eq!(requests.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn errors_of_the_store_come_back_as_they_were() {
    let (address, _) = faulty_server(memory(), Fault::AnswerLost, 0).await;
    let client = client(address, impatient());
    assert_eq!(client.get_rollout_by_id("missing").await, Ok(None));
    let error = client.start_attempt("missing", None).await.unwrap_err();
    assert_eq!(error, Error::rollout_not_found("missing"));
    let query = SpanQuery { sort_by: Some("size".to_owned()), ..SpanQuery::default() };
    let error = client.query_spans(query).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid { field, .. } if field == "sort_by"), "{error:?}");
}

#[tokio::test]
async fn a_span_that_a_lost_try_stored_counts_as_stored() {
    let store = memory();
    let started = store.start_rollout(StartRollout::default()).await.unwrap();
    let span = |number: u64| {
        let (trace, own) = (agl_types::ids::trace_id(1, 1), agl_types::ids::span_id(number));
        Span::new("s", trace, own, 1.0, 2.0).placed(
            &started.rollout.rollout_id,
            &started.attempt.attempt_id,
            7,
        )
    };
    let (address, requests) = faulty_server(Arc::clone(&store), Fault::AnswerLost, 1).await;
    let stored = client(address, impatient()).add_span(span(1)).await.unwrap();
    assert_eq!(stored, Some(span(1)));
    assert!(requests.load(Ordering::SeqCst) > 1, "the first try was lost");

    // A span that somebody else stored before under the same id is a duplicate, retry or not.
    let (address, _) = faulty_server(Arc::clone(&store), Fault::AnswerLost, 1).await;
    let other = Span { name: "other".to_owned(), ..span(1) };
    assert_eq!(client(address, impatient()).add_span(other).await, Ok(None));

    // With ids that the store issues, the answer has those of the try that was lost.
    let (address, _) = faulty_server(Arc::clone(&store), Fault::AnswerLost, 1).await;
    let drafts = [2, 3].map(|number| SpanDraft { span: span(number), has_sequence_id: false });
    let stored = client(address, impatient()).add_span_drafts(drafts.to_vec()).await.unwrap();
    let numbers: Vec<i64> = stored.iter().map(|span| span.sequence_id).collect();
    assert_eq!(numbers, [8, 9]);
}

#[tokio::test]
async fn waits_end_when_the_rollout_does_or_the_time_is_up() {
    let store = memory();
    let started = store.start_rollout(StartRollout::default()).await.unwrap();
    let (address, _) = faulty_server(Arc::clone(&store), Fault::AnswerLost, 0).await;
    let client = client(address, impatient());
    let rollout_ids = vec![started.rollout.rollout_id.clone()];
    let timed = WaitRequest { rollout_ids: rollout_ids.clone(), timeout: Some(0.1) };
    assert_eq!(client.wait_for_rollouts(timed).await, Ok(Vec::new()));
    let unknown = WaitRequest { rollout_ids: vec!["missing".to_owned()], timeout: None };
    assert_eq!(client.wait_for_rollouts(unknown).await, Ok(Vec::new()));

    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait_for_rollouts(WaitRequest { rollout_ids, timeout: None }).await }
    });
    let update = agl_types::AttemptUpdate {
        status: agl_types::AttemptStatus::Succeeded.into(),
        ..agl_types::AttemptUpdate::default()
    };
    client.update_attempt(&started.rollout.rollout_id, "latest", update).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().len(), 1);
}

/// A connection belongs to the runtime that opened it. One that stands still must not make others wait.
#[test]
fn one_client_serves_several_runtimes() {
    let serving = tokio::runtime::Runtime::new().unwrap();
    let (address, _) = serving.block_on(faulty_server(memory(), Fault::AnswerLost, 0));
    let options = ClientOptions {
        max_outage: Duration::ZERO,
        request_timeout: Duration::from_secs(20),
        ..ClientOptions::default()
    };
    let client = client(address, options);
    let single = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (one, other) = (single(), single());
    for number in 0..4 {
        for runtime in [&one, &other] {
            let request = EnqueueRolloutRequest::new(number);
            runtime.block_on(client.enqueue_rollout(request)).unwrap();
        }
    }
    let held = other.block_on(client.statistics()).unwrap();
    assert_eq!(held.total_rollouts, 8);
}

/// An answer that no store of ours gives is told apart from an outage.
#[tokio::test]
async fn somebody_elses_server_is_named_as_such() {
    async fn page() -> Response {
        "<html>".into_response()
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().route("/v1/agl/statistics", axum::routing::get(page));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = client(address, impatient());
    let error = client.statistics().await.unwrap_err();
    assert!(error.to_string().contains("not by a store of ours"), "{error}");
    let error = client.get_latest_resources().await.unwrap_err();
    assert!(matches!(&error, Error::Unsupported { .. }), "{error:?}");
}
