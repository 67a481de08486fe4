//! The spans of one attempt as a tree.

use std::borrow::Cow;
use std::collections::HashMap;

use agl_types::{Span, semconv};
use serde_json::{Value, json};

use crate::Error;
use crate::attributes::text;
use crate::llm::agent_name;

/// Id and name of the node above several roots.
const VIRTUAL_ROOT: &str = "virtual-root";

/// Where a node is in its tree.
pub(crate) type NodeId = usize;

/// A span and its place in the tree.
#[derive(Debug)]
struct Node<'a> {
    span: Cow<'a, Span>,
    parent: Option<NodeId>,
    children: Vec<NodeId>,
    /// Whether the node stands for a span that nobody sent, or above several roots.
    is_virtual: bool,
}

/// The time that a node takes.
struct Interval {
    start: f64,
    end: f64,
    node: NodeId,
    /// Where the node comes in pre-order; decides between equals.
    place: usize,
}

/// The spans of one attempt as a tree: explicit parents first, time only where there is no better witness.
#[derive(Debug)]
pub struct TraceTree<'a> {
    nodes: Vec<Node<'a>>,
    root: NodeId,
}

impl<'a> TraceTree<'a> {
    /// Builds the tree; the spans may come in any order, and siblings keep it.
    ///
    /// Of several spans with the same id the last counts. A parent that nobody sent becomes a node named
    /// `agentlightning.virtual` that spans its children's time; several roots come under a node `virtual-root`.
    /// Spans in a circle of parents beside a real root are left out, and so are state events, which are not of the
    /// agent's doing.
    ///
    /// # Errors
    /// [`Error::NoSpans`] without spans, [`Error::NoRoot`] when there are only circles.
    pub fn from_spans(spans: &'a [Span]) -> Result<Self, Error> {
        let spans = || spans.iter().filter(|span| span.name != semconv::AGL_STATE);
        let first = spans().next().ok_or(Error::NoSpans)?;
        let mut nodes: Vec<Node<'a>> = Vec::new();
        let mut by_id: HashMap<&str, NodeId> = HashMap::new();
        for span in spans() {
            if let Some(&node) = by_id.get(span.span_id.as_str()) {
                nodes[node].span = Cow::Borrowed(span);
            } else {
                by_id.insert(&span.span_id, nodes.len());
                nodes.push(Node::real(span));
            }
        }

        let mut roots = Vec::new();
        let mut lost: Vec<(&str, NodeId)> = Vec::new();
        for node in 0..nodes.len() {
            let Cow::Borrowed(span) = nodes[node].span else { continue };
            let Some(parent_id) = recorded_parent(span) else {
                roots.push(node);
                continue;
            };
            let parent = *by_id.entry(parent_id).or_insert_with(|| {
                lost.push((parent_id, nodes.len()));
                nodes.push(Node::made_up(parent_id, semconv::AGL_VIRTUAL, span));
                nodes.len() - 1
            });
            nodes[node].parent = Some(parent);
            nodes[parent].children.push(node);
        }
        roots.extend(lost.iter().map(|&(_, node)| node));

        let mut tree = Self { nodes, root: 0 };
        for &(_, node) in &lost {
            tree.span_children(node);
        }
        match roots.as_slice() {
            [] => return Err(Error::NoRoot),
            [only] => tree.root = *only,
            _ => {
                tree.root = tree.nodes.len();
                tree.nodes.push(Node::made_up(VIRTUAL_ROOT, VIRTUAL_ROOT, first));
                for &node in &roots {
                    tree.nodes[node].parent = Some(tree.root);
                }
                tree.nodes[tree.root].children = roots;
                tree.span_children(tree.root);
            }
        }
        Ok(tree)
    }

    /// Gives a made-up node the time from its first child's start to its last child's end.
    fn span_children(&mut self, node: NodeId) {
        let children = || self.nodes[node].children.iter().map(|&child| &self.nodes[child].span);
        let start_time = children().filter_map(|span| span.start_time).min_by(f64::total_cmp);
        let end_time = children().filter_map(|span| span.end_time).max_by(f64::total_cmp);
        let span = self.nodes[node].span.to_mut();
        span.start_time = start_time;
        span.end_time = end_time;
    }

    /// Finds better parents for spans whose recorded parent says nothing: those directly below a root, below a
    /// session or below a node that nobody sent, and so on down a chain of only children.
    ///
    /// Such a span moves under the smallest span that encloses its time, with some slack; of equals, the first
    /// in pre-order. An agent's own children stay with it, whatever else was going on at the time. Spans that
    /// lack a time neither move nor take others in.
    pub fn repair_hierarchy(&mut self) {
        for wrapper in self.wrappers() {
            let children = self.nodes[wrapper].children.clone();
            // An only child has nobody but its own descendants to go to.
            if children.len() < 2 {
                continue;
            }
            let containers = self.closest_containers(wrapper, &children);
            let mut staying = Vec::new();
            for child in children {
                // An earlier move may have put the container below the child.
                if let Some(&container) = containers.get(&child)
                    && !self.is_within(container, child)
                {
                    self.nodes[container].children.push(child);
                    self.nodes[child].parent = Some(container);
                } else {
                    staying.push(child);
                }
            }
            self.nodes[wrapper].children = staying;
        }
    }

    /// The nodes whose children are there for want of a better place, in pre-order.
    fn wrappers(&self) -> Vec<NodeId> {
        let mut is_wrapper = vec![false; self.nodes.len()];
        let mut wrappers = Vec::new();
        for node in self.pre_order(self.root) {
            let Node { span, parent, is_virtual, .. } = &self.nodes[node];
            let is_root = recorded_parent(span).is_none();
            let is_session = text(&span.attributes, "agentops.span.kind") == Some("session");
            let is_link_of_chain =
                parent.is_some_and(|parent| is_wrapper[parent] && self.nodes[parent].children.len() == 1);
            if agent_name(span).is_none() && (is_root || *is_virtual || is_session || is_link_of_chain) {
                is_wrapper[node] = true;
                wrappers.push(node);
            }
        }
        wrappers
    }

    /// For each child that has one, the node below `wrapper` that encloses it most tightly and is not below it.
    ///
    /// Sweeps over time, so that only those are compared that go on at the same moment.
    fn closest_containers(&self, wrapper: NodeId, children: &[NodeId]) -> HashMap<NodeId, NodeId> {
        let by_start = |a: &Interval, b: &Interval| a.start.total_cmp(&b.start);
        let mut candidates: Vec<Interval> = self
            .pre_order(wrapper)
            .skip(1)
            .enumerate()
            .filter_map(|(place, node)| Some(Interval { place, ..self.interval(node)? }))
            .collect();
        candidates.sort_by(by_start);
        let mut candidates = candidates.into_iter().peekable();
        let mut children: Vec<Interval> = children.iter().filter_map(|&child| self.interval(child)).collect();
        children.sort_by(by_start);

        let mut going_on: Vec<Interval> = Vec::new();
        let mut closest = HashMap::new();
        for child in children {
            while let Some(begun) = candidates.next_if(|candidate| candidate.start <= child.start) {
                going_on.push(begun);
            }
            going_on.retain(|candidate| candidate.end >= child.start);
            let container = going_on
                .iter()
                .map(|candidate| (candidate, (candidate.end - child.end) + (child.start - candidate.start)))
                .filter(|(candidate, slack)| {
                    candidate.end >= child.end && *slack > 0.0 && !self.is_within(candidate.node, child.node)
                })
                .min_by(|(a, slack_a), (b, slack_b)| slack_a.total_cmp(slack_b).then(a.place.cmp(&b.place)));
            if let Some((container, _)) = container {
                closest.insert(child.node, container.node);
            }
        }
        closest
    }

    fn interval(&self, node: NodeId) -> Option<Interval> {
        let span = &self.nodes[node].span;
        Some(Interval { start: span.start_time?, end: span.end_time?, node, place: 0 })
    }

    /// Whether `node` is `ancestor` or below it.
    fn is_within(&self, node: NodeId, ancestor: NodeId) -> bool {
        std::iter::successors(Some(node), |&node| self.nodes[node].parent).any(|node| node == ancestor)
    }

    /// The node and all below it, each before its children.
    pub(crate) fn pre_order(&self, from: NodeId) -> impl Iterator<Item = NodeId> {
        let mut waiting = vec![from];
        std::iter::from_fn(move || {
            let node = waiting.pop()?;
            waiting.extend(self.nodes[node].children.iter().rev());
            Some(node)
        })
    }

    /// The node at the top.
    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    /// A node's span.
    pub(crate) fn span(&self, node: NodeId) -> &Span {
        &self.nodes[node].span
    }

    /// A node's children.
    pub(crate) fn children(&self, node: NodeId) -> &[NodeId] {
        &self.nodes[node].children
    }

    /// All spans, made-up ones included, each before its children.
    pub fn traverse(&self) -> impl Iterator<Item = &Span> {
        self.pre_order(self.root).map(|node| self.span(node))
    }

    /// The tree as nested JSON: `{"id", "span", "children"}` at every node.
    #[must_use]
    pub fn to_json(&self) -> Value {
        // Children come after their parents in pre-order, so the reverse order builds from the leaves up.
        let order: Vec<NodeId> = self.pre_order(self.root).collect();
        let mut done: HashMap<NodeId, Value> = HashMap::with_capacity(order.len());
        for &node in order.iter().rev() {
            let children: Vec<Value> =
                self.children(node).iter().filter_map(|child| done.remove(child)).collect();
            let span = self.span(node);
            done.insert(node, json!({"id": span.span_id, "span": span, "children": children}));
        }
        done.remove(&self.root).unwrap_or_default()
    }
}

/// The parent that the span names; some senders write "" for none.
fn recorded_parent(span: &Span) -> Option<&str> {
    span.parent_id.as_deref().filter(|id| !id.is_empty())
}

impl<'a> Node<'a> {
    fn real(span: &'a Span) -> Self {
        Self { span: Cow::Borrowed(span), parent: None, children: Vec::new(), is_virtual: false }
    }

    /// A node that nobody sent, in the attempt and trace of `like`; its time is set once its children are known.
    fn made_up(id: &str, name: &str, like: &Span) -> Self {
        let mut span = Span::new(name, like.trace_id.clone(), id.to_owned(), 0.0, 0.0).placed(
            &like.rollout_id,
            &like.attempt_id,
            like.sequence_id,
        );
        span.resource = like.resource.clone();
        Self { span: Cow::Owned(span), parent: None, children: Vec::new(), is_virtual: true }
    }
}

/// The spans as a nested tree, `{"id", "span", "children"}` at every node, repaired when asked for.
///
/// # Errors
/// Those of [`TraceTree::from_spans`].
pub fn tree_to_json(spans: &[Span], repair_hierarchy: bool) -> Result<Value, Error> {
    let mut tree = TraceTree::from_spans(spans)?;
    if repair_hierarchy {
        tree.repair_hierarchy();
    }
    Ok(tree.to_json())
}
