//! Requests into checked values; whatever cannot be one is an error document.

use super::reply::Refusal;
use axum::{
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::QueryRejection},
    http::{StatusCode, request::Parts},
};
use blockd_api::{ApiError, ErrorCode, MAX_REQUEST_BYTES, NameError};
use serde::de::DeserializeOwned;
use std::{str::FromStr, time::Duration};

/// Time that a client has to send a body of at most [`MAX_REQUEST_BYTES`].
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, message)
}

/// The one name in the path.
pub struct Named<T>(pub T);

impl<T: FromStr<Err = NameError>, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|error| invalid(error.body_text()))?;
        let name = text.parse().map_err(|error: NameError| invalid(format!("{text:?} is no name")).with_hint(error.to_string()))?;
        Ok(Self(name))
    }
}

/// The query of the address.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        let Query(value) = query.map_err(|error: QueryRejection| invalid(error.body_text()))?;
        Ok(Self(value))
    }
}

/// The body: a JSON document, where nothing stands for `{}`.
pub struct Document<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Document<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let read = axum::body::to_bytes(request.into_body(), MAX_REQUEST_BYTES);
        let body = match tokio::time::timeout(BODY_TIMEOUT, read).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => return Err(unreadable(&error)),
            Err(_) => {
                let error = ApiError::new(ErrorCode::Timeout, "the request's body did not come in time");
                return Err(Refusal::with_status(StatusCode::REQUEST_TIMEOUT, error));
            }
        };
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        let value = serde_json::from_slice(text).map_err(|error| invalid(format!("the request's body is wrong: {error}")))?;
        Ok(Self(value))
    }
}

fn unreadable(error: &axum::Error) -> Refusal {
    let too_large = std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
    if too_large {
        let error = invalid(format!("the request's body is larger than {MAX_REQUEST_BYTES} bytes"));
        return Refusal::with_status(StatusCode::PAYLOAD_TOO_LARGE, error);
    }
    invalid(format!("the request's body cannot be read: {error}")).into()
}
