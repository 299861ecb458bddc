//! Requests and the proxy that the environment names. One test, as the environment is the process'.

use testkit::hostile::{serve_blob, Act, Hostile};
use walrusds::{Client, ClientConfig, StoreOptions};

const ID: &str = "M4hsZGQ1oCktdzegB6HnI6Mi28S2nqOPHxK-W7_4BUk";

fn client(url: &str) -> Client {
    Client::new(
        ClientConfig::default()
            .with_aggregators(vec![url.to_owned()])
            .with_publishers(vec![url.to_owned()])
            .with_max_retries(0),
    )
    .unwrap()
}

#[tokio::test]
async fn this_machine_passes_no_proxy_and_errors_name_it() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let proxy = format!("http://user:hunter2@127.0.0.1:{closed}");
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        #[allow(clippy::disallowed_methods)] // a process of the tests
        std::env::set_var(name, &proxy);
    }
    let well = Hostile::start(|seen| Act::Say(serve_blob(seen, &[7; 100]))).await;
    assert_eq!(
        client(&well.url()).read_range(ID, 0, 100).await.unwrap(),
        &[7; 100][..]
    );

    let far = client("http://aggregator.invalid:1");
    let options = StoreOptions::new(1);
    let read = far.read_range(ID, 0, 100).await.unwrap_err();
    let store = far.store(vec![1, 2, 3], options).await.unwrap_err();
    for error in [read, store] {
        let text = error.message();
        assert!(
            text.contains(&format!("proxy 127.0.0.1:{closed}")),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
    }
}
