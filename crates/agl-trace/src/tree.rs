//! The spans of one attempt as a tree.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use agl_types::{Span, semconv};
use serde_json::{Value, json};

use crate::Error;
use crate::attributes::text;
use crate::llm::agent_name;

/// Id and name of the node above several roots.
const VIRTUAL_ROOT: &str = "virtual-root";

/// Where a node is in its tree.
pub type NodeId = usize;

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
        let (tree, roots) = Self::unrooted(spans.iter())?;
        if roots.is_empty() { Err(Error::NoRoot) } else { Ok(tree.rooted(roots)) }
    }

    /// Builds a tree that loses no span: of those whose parents run in a circle, the first one becomes a root.
    ///
    /// # Errors
    /// [`Error::NoSpans`] without spans.
    pub fn of_all(spans: impl IntoIterator<Item = &'a Span>) -> Result<Self, Error> {
        let (mut tree, mut roots) = Self::unrooted(spans.into_iter())?;
        let mut is_reached = vec![false; tree.nodes.len()];
        for &root in &roots {
            tree.pre_order(root).for_each(|node| is_reached[node] = true);
        }
        for node in 0..tree.nodes.len() {
            if is_reached[node] {
                continue;
            }
            // Up from here it goes in a circle: the first node that comes twice is in it.
            let mut seen = HashSet::new();
            let ancestors = std::iter::successors(Some(node), |&node| tree.nodes[node].parent);
            let Some(twice) = ancestors.into_iter().find(|&node| !seen.insert(node)) else { continue };
            let circle = std::iter::successors(tree.nodes[twice].parent, |&node| {
                tree.nodes[node].parent.filter(|_| node != twice)
            });
            let first = circle.min().unwrap_or(twice);
            if let Some(parent) = tree.nodes[first].parent.take() {
                tree.nodes[parent].children.retain(|&child| child != first);
            }
            roots.push(first);
            tree.pre_order(first).for_each(|node| is_reached[node] = true);
        }
        Ok(tree.rooted(roots))
    }

    /// A tree of the shape given: `parents` has the place of each span's parent, which comes before it; the first span is
    /// the root.
    ///
    /// # Errors
    /// [`Error::NoSpans`] without spans, [`Error::NoRoot`] when a parent does not come before its child.
    pub fn of_shape(spans: &'a [Span], parents: &[Option<usize>]) -> Result<Self, Error> {
        let mut nodes: Vec<Node<'a>> = spans.iter().map(Node::real).collect();
        let parents = parents.iter().copied().chain(std::iter::repeat(None)).take(nodes.len());
        for (node, parent) in parents.enumerate() {
            let is_virtual = matches!(spans[node].name.as_str(), semconv::AGL_VIRTUAL | VIRTUAL_ROOT);
            nodes[node].is_virtual = is_virtual;
            match parent {
                None if node == 0 => {}
                Some(parent) if parent < node => {
                    nodes[node].parent = Some(parent);
                    nodes[parent].children.push(node);
                }
                _ => return Err(Error::NoRoot),
            }
        }
        if nodes.is_empty() { Err(Error::NoSpans) } else { Ok(Self { nodes, root: 0 }) }
    }

    /// The number of nodes, made-up ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no nodes, which never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The nodes with their parents, and those that have none. What a runner says of the state of an attempt is no part of
    /// what the agent did.
    fn unrooted(spans: impl Iterator<Item = &'a Span>) -> Result<(Self, Vec<NodeId>), Error> {
        let mut nodes: Vec<Node<'a>> = Vec::with_capacity(spans.size_hint().0 + 1);
        let mut by_id: HashMap<&str, NodeId> = HashMap::with_capacity(spans.size_hint().0);
        for span in spans.filter(|span| span.name != semconv::AGL_STATE) {
            if let Some(&node) = by_id.get(span.span_id.as_str()) {
                nodes[node].span = Cow::Borrowed(span);
            } else {
                by_id.insert(&span.span_id, nodes.len());
                nodes.push(Node::real(span));
            }
        }

        if nodes.is_empty() {
            return Err(Error::NoSpans);
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
        Ok((tree, roots))
    }

    /// The tree with its one root, or with a made-up one above several.
    fn rooted(mut self, roots: Vec<NodeId>) -> Self {
        if let [only] = roots.as_slice() {
            self.root = *only;
            return self;
        }
        self.root = self.nodes.len();
        let made_up = Node::made_up(VIRTUAL_ROOT, VIRTUAL_ROOT, &self.nodes[0].span);
        self.nodes.push(made_up);
        for &node in &roots {
            self.nodes[node].parent = Some(self.root);
        }
        self.nodes[self.root].children = roots;
        self.span_children(self.root);
        self
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
    #[must_use]
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// A node's parent.
    pub(crate) fn parent(&self, node: NodeId) -> Option<NodeId> {
        self.nodes[node].parent
    }

    /// A node's span.
    #[must_use]
    pub fn span(&self, node: NodeId) -> &Span {
        &self.nodes[node].span
    }

    /// A node's children.
    #[must_use]
    pub fn children(&self, node: NodeId) -> &[NodeId] {
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
