use agl_export::{AnswerFormat, TrainingRequest, training_arrow, training_data};
use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use crate::error::ApiError;
use crate::extract::Body;

/// The media type of Arrow's streams.
const ARROW: &str = "application/vnd.apache.arrow.stream";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(make))
}

/// Makes training data of many rollouts: what the model saw and did, token by token, with rewards and advantages.
///
/// The spans are read here, so that only the data travel.
#[utoipa::path(
    post,
    path = "/training-data",
    operation_id = "training_data",
    request_body = TrainingRequest,
    responses((
        status = 200,
        description = "Rows and a report; with `format` `arrow`, as `application/vnd.apache.arrow.stream`.",
        body = Object,
    )),
)]
async fn make(State(app): State<App>, body: Body) -> Result<Response, ApiError> {
    let request: TrainingRequest = body.parse()?;
    match request.format {
        AnswerFormat::Json => Ok(Json(training_data(app.store, &request).await?).into_response()),
        AnswerFormat::Arrow => {
            let ipc = training_arrow(app.store, &request).await?;
            Ok(([(CONTENT_TYPE, ARROW)], ipc).into_response())
        }
    }
}

impl From<agl_export::Error> for ApiError {
    fn from(error: agl_export::Error) -> Self {
        match error {
            agl_export::Error::Store(error) => error.into(),
            agl_export::Error::Trace(error) => Self::bad_request(error.to_string()),
            error => {
                tracing::error!(%error, "training data could not be made");
                Self::internal("training_data")
            }
        }
    }
}
