//! What the doctor finds out about servers that can and that can't.

use agl_gateway::doctor::{Finding, examine};

use crate::engine::Engine;

fn there(findings: &[Finding]) -> Vec<(&'static str, bool)> {
    findings.iter().map(|finding| (finding.what, finding.is_there)).collect()
}

#[tokio::test]
async fn a_server_is_asked_what_it_can_do() {
    let engine = Engine::start().await;
    let findings = examine(&engine.url, None, None).await.unwrap();
    let expected = [
        ("models", true),
        ("chat completions", true),
        ("token ids", true),
        ("log-probs", true),
        ("streams", true),
        ("tools", true),
        ("completions", true),
        ("responses", false),
        ("messages", false),
        ("embeddings", true),
    ];
    assert_eq!(there(&findings), expected);
    assert_eq!(findings[2].seen, "2 of the prompt, 2 of the response");
    assert!(findings[4].seen.ends_with("with usage"), "{findings:?}");
    assert!(findings[7].fix.contains("translates"));

    let other = Engine::owned_by("somebody").await;
    let findings = examine(&other.url, None, Some("m")).await.unwrap();
    assert_eq!(there(&findings)[2], ("token ids", false));
    assert!(findings[2].seen.contains("unknown field return_token_ids") && findings[2].fix.contains("vLLM"));

    let miscounts = examine(&engine.url, None, Some("wrong-completion")).await.unwrap();
    assert_eq!(miscounts[2].seen, "2 and 2 of them, but usage counts 2 and 3");

    let findings = examine("http://127.0.0.1:9/v1", None, None).await.unwrap();
    assert_eq!(there(&findings), [("models", false)]);
    assert!(findings[0].seen.contains("refused"), "{findings:?}");
    assert!(examine("nonsense", None, None).await.is_err());
}
