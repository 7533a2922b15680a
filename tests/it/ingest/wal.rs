//! The write-ahead file.

use std::io::Write as _;

use super::*;

fn start(wal: &Path, output: &Path, more: &[&str]) -> Ingest {
    let flags = ["--wal", text(wal), "--output", text(output)];
    Ingest::start(&[&flags[..], more].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_end_is_cut_and_the_rest_goes_on() {
    let (wal, output) = (scratch().join("wal"), scratch().join("output"));
    // Nothing is processed for now.
    let ingest = start(&wal, &output, &["--work-time", "1m"]);
    let client = ingest.client().await;
    let ids: Vec<_> = (0..50).map(|n| n.to_string()).collect();
    send_all(&client, &ids).await.unwrap();
    ingest.program.kill();
    let whole = std::fs::read(&wal).unwrap();

    // At each place within the last record, and with garbage behind it.
    for cut in [1, 9, 17, 26] {
        let output = scratch().join("output");
        std::fs::write(&wal, &whole[..whole.len() - cut]).unwrap();
        let ingest = start(&wal, &output, &[]);
        until("all but the last are processed", || {
            processed(&output).len() == 49
        });
        until("it says what was cut", || {
            ingest.program.stderr().contains("were no record")
        });
        let torn = std::fs::metadata(wal.with_extension("torn")).unwrap().len();
        assert_eq!(
            torn as usize,
            28 - cut,
            "a record has a head of 8 bytes, 11, its id and its payload"
        );
        // What is in the file is known, what was cut is new.
        let client = ingest.client().await;
        assert_eq!(send_all(&client, &ids).await.unwrap().duplicates, 49);
        assert_eq!(ingest.end(), 0);
        assert_eq!(processed(&output).len(), 50);
    }

    std::fs::write(&wal, [&whole[..], &[0; 4096]].concat()).unwrap();
    let output = scratch().join("output");
    let ingest = start(&wal, &output, &[]);
    until("all are processed", || processed(&output).len() == 50);
    assert_eq!(ingest.end(), 0);

    std::fs::write(&wal, b"somebody's letters").unwrap();
    let program = Program::start(example("ingest"), ["--wal", text(&wal)]);
    assert_eq!(program.wait(PATIENCE).code(), Some(1));
    assert!(
        program.stderr().contains("name another with --wal"),
        "{}",
        program.stderr()
    );
    assert_eq!(std::fs::read(&wal).unwrap(), b"somebody's letters");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_does_not_grow_for_ever() {
    let (wal, output) = (scratch().join("wal"), scratch().join("output"));
    let ingest = start(&wal, &output, &["--wal-max", "20000", "--window", "100"]);
    let client = ingest.client().await;
    let mut longest = 0;
    for round in 0..40 {
        let ids: Vec<_> = (0..100).map(|n| format!("{round}.{n}")).collect();
        assert_eq!(send_all(&client, &ids).await.unwrap().duplicates, 0);
        longest = longest.max(std::fs::metadata(&wal).unwrap().len());
        until("they are processed", || {
            processed(&output).len() == (round + 1) * 100
        });
    }
    // A round has about 6 KB: its items, and a note for each that it was processed.
    assert!((20_000..60_000).contains(&longest), "{longest}");
    let mut file = std::fs::OpenOptions::new().append(true).open(&wal).unwrap();
    file.write_all(&[1, 2, 3]).unwrap();
    ingest.program.kill();
    let ingest = start(&wal, &output, &["--window", "100"]);
    let client = ingest.client().await;
    let ids: Vec<_> = (0..100).map(|n| format!("39.{n}")).collect();
    assert_eq!(send_all(&client, &ids).await.unwrap().duplicates, 100);
    assert_eq!(ingest.end(), 0);
    assert_eq!(processed(&output).len(), 4000);
}
