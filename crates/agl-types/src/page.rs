use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The `limit` that means "all of them".
pub const UNLIMITED: i64 = -1;

/// One page of a query's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items of this page, in the order asked for.
    pub items: Vec<T>,
    /// The limit asked for; [`UNLIMITED`] for none.
    pub limit: i64,
    /// How many matches were passed over before the first item.
    pub offset: i64,
    /// How many items match in all, whatever the page.
    pub total: i64,
}

/// The direction of a sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SortOrder {
    /// Smallest first.
    #[default]
    Asc,
    /// Largest first.
    Desc,
}

/// How the conditions of a query are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FilterLogic {
    /// Every condition must hold.
    #[default]
    And,
    /// One condition is enough; no condition at all matches everything.
    Or,
}
