//! An algorithm of one's own in thirty lines: of several prompts it keeps the one that does best.
//!
//! ```text
//! cargo run -p agentlightning --example best_prompt
//! ```

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

use agentlightning::types::{JsonMap, TemplateEngine};
use agentlightning::{
    Algorithm, AlgorithmContext, BoxError, NamedResources, Outcome, PromptTemplate, Resource, RolloutContext,
    RolloutMode, Summary, Trainer, async_trait,
};
use serde_json::{Value, json};

// The algorithm. What it finds is in the store: its last version of the resources is the best one.
pub(crate) struct BestPrompt(pub(crate) Vec<&'static str>);

#[async_trait]
impl Algorithm for BestPrompt {
    async fn run(&self, context: &AlgorithmContext) -> Result<Summary, agl_algorithm::Error> {
        let mut summary = Summary::default();
        let mut best: Option<(f64, NamedResources)> = None;
        for text in &self.0 {
            let resources = prompt(text);
            let id = context.store.update_resources("prompt", resources.clone()).await?.resources_id;
            let reports = context.run_tasks(RolloutMode::Train, &context.train, Some(&id)).await?;
            reports.iter().for_each(|report| summary.add(report));
            let rewards: Vec<f64> = reports.iter().filter_map(|report| report.reward).collect();
            let mean = rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
            if best.as_ref().is_none_or(|(highest, _)| mean > *highest) {
                best = Some((mean, resources));
            }
        }
        if let Some((_, resources)) = best {
            context.store.update_resources("prompt", resources).await?;
        }
        Ok(summary)
    }
}

fn prompt(text: &str) -> NamedResources {
    let template =
        PromptTemplate { template: text.to_owned(), engine: TemplateEngine::FString, extra: JsonMap::new() };
    NamedResources::from_iter([("prompt".to_owned(), Resource::PromptTemplate(template))])
}

/// Stands for an agent with a model, which is better when asked politely.
pub(crate) async fn agent(task: Value, context: RolloutContext) -> Result<Outcome, BoxError> {
    let prompt =
        context.prompt_template().ok_or("there is no prompt")?.template.replace("{task}", &task.to_string());
    Ok(Outcome::Reward(f64::from(u8::from(prompt.contains("please")))))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let algorithm = BestPrompt(vec!["Do {task}!", "Do {task}, please.", "{task}"]);
    let trainer = Trainer::builder().agent(agent).n_runners(4).algorithm(algorithm).build()?;
    trainer.fit(vec![json!(1), json!(2), json!(3)], Vec::new()).await?;
    println!("{:?}", trainer.store().get_latest_resources().await?);
    Ok(())
}
