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
    /// Spans in a circle of parents beside a real root are left out.
    ///
    /// # Errors
    /// [`Error::NoSpans`] without spans, [`Error::NoRoot`] when there are only circles.
    pub fn from_spans(spans: &'a [Span]) -> Result<Self, Error> {
        let first = spans.first().ok_or(Error::NoSpans)?;
        let mut nodes: Vec<Node<'a>> = Vec::with_capacity(spans.len() + 1);
        let mut by_id: HashMap<&str, NodeId> = HashMap::with_capacity(spans.len());
        for span in spans {
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
            // Whatever moves stays below the wrapper, so its nodes are collected once.
            let candidates: Vec<Interval> =
                self.pre_order(wrapper).skip(1).filter_map(|node| self.interval(node)).collect();
            for child in children {
                if let Some(container) = self.closest_container(&candidates, child) {
                    self.nodes[wrapper].children.retain(|&other| other != child);
                    self.nodes[container].children.push(child);
                    self.nodes[child].parent = Some(container);
                }
            }
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

    fn closest_container(&self, candidates: &[Interval], child: NodeId) -> Option<NodeId> {
        let Interval { start, end, .. } = self.interval(child)?;
        let mut least = f64::INFINITY;
        let mut closest = None;
        for candidate in candidates {
            let slack = (candidate.end - end) + (start - candidate.start);
            let encloses = candidate.start <= start && candidate.end >= end && slack > 0.0;
            if encloses && slack < least && !self.is_within(candidate.node, child) {
                least = slack;
                closest = Some(candidate.node);
            }
        }
        closest
    }

    fn interval(&self, node: NodeId) -> Option<Interval> {
        let span = &self.nodes[node].span;
        Some(Interval { start: span.start_time?, end: span.end_time?, node })
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
