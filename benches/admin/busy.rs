//! A program with much to show: 200 routes, 50 hosts, 50 backends.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Waker};

use tower::{Service, ServiceBuilder, service_fn};
use tower_flow::Flow;
use tower_flow::pool::limit::{RequestLimit, RequestPermit};
use tower_flow::shed::ShedLayer;
use tower_flow::timing::TimingLayer;

type Answer = fn(String) -> Ready<Result<(), Infallible>>;

/// The program, and what of it is held.
pub struct Busy {
    pub flow: Flow,
    pub routes: Vec<String>,
    timing: TimingLayer<fn(&String) -> &str>,
    _hosts: Vec<RequestPermit>,
}

fn name(route: &String) -> &str {
    route
}

impl Busy {
    pub fn new(routes: usize) -> Self {
        let flow = Flow::new("bench");
        let timing = TimingLayer::new("server")
            .max_routes(routes)
            .route_by(name as fn(&String) -> &str)
            .attach(&flow);
        let _shed = ShedLayer::adaptive().attach(&flow);
        let limit = RequestLimit::new(1_000).attach(&flow);
        let hosts = (0..50).map(|n| {
            let uri = format!("https://backend-{n}.orders.example:8443");
            let uri = uri.parse().expect("a URI");
            let mut acquire = std::pin::pin!(limit.acquire(&uri));
            match acquire
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
            {
                std::task::Poll::Ready(permit) => permit.expect("there is room"),
                std::task::Poll::Pending => panic!("there is room at once"),
            }
        });
        let busy = Self {
            _hosts: hosts.collect(),
            routes: (0..routes)
                .map(|n| format!("/shop.Orders/Method{n:05}"))
                .collect(),
            timing,
            flow,
        };
        for _ in 0..3 {
            busy.call_all();
        }
        busy
    }

    /// One call of every route.
    pub fn call_all(&self) {
        let mut service = self.service();
        for route in &self.routes {
            call(&mut service, route.clone());
        }
    }

    pub fn service(&self) -> impl Service<String> + Send + use<> {
        let answer: Answer = |_| ready(Ok(()));
        ServiceBuilder::new()
            .layer(self.timing.clone())
            .service(service_fn(answer))
    }
}

/// One call, which is answered at once.
pub fn call<S: Service<String>>(service: &mut S, route: String) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let answered = std::pin::pin!(service.call(route)).as_mut().poll(&mut cx);
    assert!(answered.is_ready());
}
