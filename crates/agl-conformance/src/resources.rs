//! Resources and their versions.

use agl_types::{EnqueueRolloutRequest, NamedResources, Resource, ResourcesQuery, StartRollout};
use serde_json::json;

use crate::{START, Subject, model};

/// Each write makes a version and becomes the latest; older versions stay readable.
pub async fn versions_count_up_and_stay_readable(s: &Subject) {
    let first = s.store.add_resources(model("one")).await.unwrap();
    assert_eq!((first.version, first.create_time, first.update_time), (1, START, START));
    assert!(first.resources_id.starts_with("rs-") && first.resources_id.len() == 15);
    s.clock.advance(1.0);
    let other = s.store.add_resources(model("other")).await.unwrap();
    assert_ne!(first.resources_id, other.resources_id);
    assert_eq!(s.store.get_latest_resources().await.unwrap(), Some(other.clone()));
    s.clock.advance(1.0);
    let second = s.store.update_resources(&first.resources_id, model("two")).await.unwrap();
    assert_eq!((second.version, second.create_time, second.update_time), (2, START, START + 2.0));
    assert_eq!(s.store.get_latest_resources().await.unwrap(), Some(second.clone()));
    let get = async |version| s.store.get_resources_by_id(&first.resources_id, version).await.unwrap();
    assert_eq!(get(None).await, Some(second.clone()));
    assert_eq!(get(Some(1)).await, Some(first.clone()));
    assert_eq!(get(Some(2)).await, Some(second));
    assert_eq!(get(Some(3)).await, None);
    assert_eq!(s.store.get_resources_by_id(&other.resources_id, None).await.unwrap(), Some(other));
}

/// Updating an id that is not there makes its first version.
pub async fn update_creates_what_is_missing(s: &Subject) {
    let made = s.store.update_resources("chosen-by-me", model("one")).await.unwrap();
    assert_eq!((made.resources_id.as_str(), made.version, made.create_time), ("chosen-by-me", 1, START));
    assert_eq!(s.store.get_latest_resources().await.unwrap(), Some(made));
    assert_eq!(s.store.update_resources("chosen-by-me", model("two")).await.unwrap().version, 2);
}

/// By default the newest version of each id is listed, in the order in which the ids were made.
pub async fn resources_are_found_by_id(s: &Subject) {
    for (resources_id, name) in [("b-1", "one"), ("a-1", "two"), ("b-1", "three")] {
        s.clock.advance(1.0);
        s.store.update_resources(resources_id, model(name)).await.unwrap();
    }
    let find = async |query| -> Vec<(String, u32)> {
        let page = s.store.query_resources(query).await.unwrap();
        assert_eq!(page.total, i64::try_from(page.items.len()).unwrap());
        page.items.into_iter().map(|update| (update.resources_id, update.version)).collect()
    };
    let version = |resources_id: &str, version| (resources_id.to_owned(), version);
    assert_eq!(find(ResourcesQuery::default()).await, [version("b-1", 2), version("a-1", 1)]);
    let all = ResourcesQuery { all_versions: true, ..ResourcesQuery::default() };
    assert_eq!(find(all).await, [version("b-1", 1), version("a-1", 1), version("b-1", 2)]);
    let by_time = ResourcesQuery { sort_by: Some("update_time".to_owned()), ..ResourcesQuery::default() };
    assert_eq!(find(by_time).await, [version("a-1", 1), version("b-1", 2)]);
    let exact = ResourcesQuery { resources_id: Some("b-1".to_owned()), ..ResourcesQuery::default() };
    assert_eq!(find(exact.clone()).await, [version("b-1", 2)]);
    let both = ResourcesQuery { resources_id_contains: Some("a".to_owned()), ..exact };
    assert_eq!(find(both).await, []);
    let part = ResourcesQuery { resources_id_contains: Some("-1".to_owned()), ..ResourcesQuery::default() };
    assert_eq!(find(part).await.len(), 2);
}

/// A rollout gets the latest resources at its creation, unless it names some; later ones do not reach it.
pub async fn rollouts_pin_the_latest_resources(s: &Subject) {
    assert_eq!(s.enqueue("early").await.resources_id, None);
    let first = s.store.add_resources(model("one")).await.unwrap().resources_id;
    let queued = s.enqueue("task").await;
    assert_eq!(queued.resources_id.as_ref(), Some(&first));
    let second = s.store.add_resources(model("two")).await.unwrap().resources_id;
    s.dequeue().await.unwrap();
    assert_eq!(s.dequeue().await.unwrap().rollout.resources_id.as_ref(), Some(&first));
    assert_eq!(s.start().await.rollout.resources_id.as_ref(), Some(&second));
    s.store.update_resources(&first, model("three")).await.unwrap();
    assert_eq!(s.enqueue("task").await.resources_id, Some(first));
    let rollout = EnqueueRolloutRequest {
        resources_id: Some("anything".to_owned()),
        ..EnqueueRolloutRequest::new("task")
    };
    assert_eq!(
        s.store.enqueue_rollout(rollout.clone()).await.unwrap().resources_id.as_deref(),
        Some("anything")
    );
    let started = s.store.start_rollout(StartRollout { rollout, worker_id: None }).await.unwrap();
    assert_eq!(started.rollout.resources_id.as_deref(), Some("anything"));
}

/// A user's own resource types come back as they were, in the order given.
pub async fn custom_resources_survive(s: &Subject) {
    let wire = json!({
        "tool": {"resource_type": "my_tool", "weights": [1, 2.5], "nested": {"z": null, "a": 1}},
        "model": {
            "resource_type": "proxy_llm", "endpoint": "http://h/v1", "model": "m", "api_key": null,
            "sampling_parameters": {"temperature": 0.7},
        },
        "prompt": {"resource_type": "prompt_template", "template": "{x}", "engine": "f-string"},
    });
    let resources: NamedResources = serde_json::from_value(wire.clone()).unwrap();
    let made = s.store.add_resources(resources).await.unwrap();
    let kept = s.store.get_resources_by_id(&made.resources_id, None).await.unwrap().unwrap();
    assert_eq!(serde_json::to_string(&kept.resources).unwrap(), wire.to_string());
    assert!(matches!(kept.resources["tool"], Resource::Custom(_)));
}
