//! Connections to model servers. Each is driven by the call that uses it: between the socket and the call there is no task
//! that would have to be woken for every piece of a stream.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::{Service as _, ServiceExt as _};
use url::Url;

/// How long setting up a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection is kept that nothing is said on. uvicorn, which vLLM is served by, closes it after five
/// seconds, and a call that is sent just then would be lost.
const IDLE: Duration = Duration::from_secs(4);

/// Bytes that are read at once at most. Every connection keeps as much room, so that it adds up.
const READ: usize = 64 << 10;

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The request was not sent.
    #[error("could not be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("broke off")]
    Off(#[source] hyper::Error),
    #[error("has no address that a request can be sent to")]
    Address(#[source] axum::http::Error),
}

impl Broken {
    fn late() -> Self {
        Self::Unreachable(format!("no connection within {} s", CONNECT.as_secs()).into())
    }
}

/// The body of a request, in pieces that are sent as they are.
#[derive(Debug)]
struct Pieces(std::vec::IntoIter<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let length: usize = self.0.as_slice().iter().map(Bytes::len).sum();
        u64::try_from(length).map(SizeHint::with_exact).unwrap_or_default()
    }
}

type Driver = http1::Connection<MaybeHttpsStream<TokioIo<TcpStream>>, Pieces>;

/// A connection, and what is said on it.
#[derive(Debug)]
struct Link {
    sender: SendRequest<Pieces>,
    /// None when it has ended.
    driver: Option<Pin<Box<Driver>>>,
}

impl Link {
    /// Moves what can be moved. What goes wrong is told to who waits for the answer.
    fn drive(&mut self, context: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(context).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether a request can be sent on it.
    fn is_ready(&mut self, context: &mut Context<'_>) -> bool {
        self.drive(context);
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Sends a request. One that never left comes back with the error.
    async fn exchange(
        &mut self,
        request: Request<Pieces>,
    ) -> Result<axum::http::Response<Incoming>, (hyper::Error, Option<Request<Pieces>>)> {
        let Self { sender, driver } = self;
        let mut answer = pin!(sender.try_send_request(request));
        let answered = poll_fn(|context| {
            if let Poll::Ready(answer) = answer.as_mut().poll(context) {
                return Poll::Ready(answer);
            }
            if let Some(running) = driver
                && running.as_mut().poll(context).is_ready()
            {
                *driver = None;
            }
            answer.as_mut().poll(context)
        });
        answered.await.map_err(|mut error| {
            let request = error.take_message();
            (error.into_error(), request)
        })
    }
}

/// Who is connected to: scheme, host and port.
type Place = String;

/// Connections that wait for the next call.
#[derive(Clone)]
pub(crate) struct Links(Arc<Shared>);

struct Shared {
    connector: HttpsConnector<HttpConnector>,
    idle: Mutex<HashMap<Place, Vec<(Instant, Link)>>>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, HashMap<Place, Vec<(Instant, Link)>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes those that have waited for too long. Returns whether others still wait.
    fn sweep(&self) -> bool {
        let mut idle = self.idle();
        idle.retain(|_, links| {
            links.retain(|(since, _)| since.elapsed() < IDLE);
            !links.is_empty()
        });
        !idle.is_empty()
    }
}

impl Links {
    pub(crate) fn new(tls: ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Self(Arc::new(Shared { connector, idle: Mutex::default() }))
    }

    /// Sends a request and waits for the head of the answer.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Vec<Bytes>,
    ) -> Result<Answer, Broken> {
        let place = url[..url::Position::BeforePath].to_owned();
        let mut request = Request::new(Pieces(body.into_iter()));
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        let target = PathAndQuery::try_from(&url[url::Position::BeforePath..url::Position::AfterQuery]);
        *request.uri_mut() = target.map_err(|error| Broken::Address(error.into()))?.into();
        let host = HeaderValue::from_str(&url[url::Position::BeforeHost..url::Position::AfterPort]);
        request.headers_mut().insert(header::HOST, host.map_err(|error| Broken::Address(error.into()))?);
        loop {
            let kept = self.kept(&place).await;
            let is_kept = kept.is_some();
            let mut link = match kept {
                Some(link) => link,
                None => self.connect(&place).await?,
            };
            match link.exchange(request).await {
                Ok(answer) => {
                    let (head, body) = answer.into_parts();
                    let flow = Flow { body, back: Some((self.clone(), place, link)) };
                    return Ok(Answer { status: head.status, headers: head.headers, flow });
                }
                // It was closed before it was used.
                Err((_, Some(unsent))) if is_kept => request = unsent,
                Err((error, _)) => return Err(Broken::Off(error)),
            }
        }
    }

    async fn connect(&self, place: &Place) -> Result<Link, Broken> {
        let opened = async {
            let to = Uri::try_from(place.as_str()).map_err(|error| Broken::Address(error.into()))?;
            let mut connector = self.0.connector.clone();
            let stream = connector.ready().await.map_err(Broken::Unreachable)?.call(to).await;
            let stream = stream.map_err(Broken::Unreachable)?;
            let opened = http1::Builder::new().max_buf_size(READ).handshake(stream).await;
            let (sender, driver) = opened.map_err(|error| Broken::Unreachable(error.into()))?;
            Ok(Link { sender, driver: Some(Box::pin(driver)) })
        };
        tokio::time::timeout(CONNECT, opened).await.unwrap_or_else(|_| Err(Broken::late()))
    }

    /// A connection that waits and is still open, the one that was used last first.
    async fn kept(&self, place: &Place) -> Option<Link> {
        loop {
            let (since, mut link) = self.0.idle().get_mut(place)?.pop()?;
            let is_open = poll_fn(|context| Poll::Ready(link.is_ready(context))).await;
            if is_open && since.elapsed() < IDLE {
                return Some(link);
            }
        }
    }

    fn keep(&self, place: Place, link: Link) {
        let mut idle = self.0.idle();
        if idle.is_empty() {
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
        idle.entry(place).or_default().push((Instant::now(), link));
    }
}

/// Closes connections that nobody came back to, until there are none.
async fn sweep(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(IDLE).await;
        if !shared.upgrade().is_some_and(|shared| shared.sweep()) {
            return;
        }
    }
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) flow: Flow,
}

impl Answer {
    /// The whole body; none when it has more bytes than `limit`.
    pub(crate) async fn whole(mut self, limit: usize) -> Result<Option<Bytes>, Broken> {
        let length =
            self.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let Some(first) = self.flow.chunk().await? else { return Ok(Some(Bytes::new())) };
        if length == Some(first.len()) {
            self.flow.chunk().await?;
            return Ok(Some(first));
        }
        let mut body = BytesMut::with_capacity(length.unwrap_or_default().clamp(first.len(), 1 << 20));
        body.extend_from_slice(&first);
        while let Some(chunk) = self.flow.chunk().await? {
            if body.len() + chunk.len() > limit {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body.freeze()))
    }
}

/// The body of an answer as it comes in. Dropped before its end, it takes the connection with it.
#[derive(Debug)]
pub(crate) struct Flow {
    body: Incoming,
    /// What it comes over, and where that goes when all has come.
    back: Option<(Links, Place, Link)>,
}

impl Flow {
    /// What has come next; none at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Broken> {
        poll_fn(|context| self.poll_chunk(context)).await
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Broken>> {
        let mut is_driven = false;
        loop {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Ok(Some(data))),
                    // Trailers.
                    _ => {}
                },
                Poll::Ready(Some(Err(error))) => {
                    self.back = None;
                    return Poll::Ready(Err(Broken::Off(error)));
                }
                Poll::Ready(None) => {
                    if let Some((links, place, mut link)) = self.back.take()
                        && link.is_ready(context)
                    {
                        links.keep(place, link);
                    }
                    return Poll::Ready(Ok(None));
                }
                Poll::Pending => match &mut self.back {
                    Some((_, _, link)) if !is_driven => {
                        link.drive(context);
                        is_driven = true;
                    }
                    _ => return Poll::Pending,
                },
            }
        }
    }
}
