use potluck_protocol::{id::ContentHash, job::*};
use potluck_sandbox::{engine::DeviceChoice, supervisor::*};
use std::time::*;
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let threads: usize = a[3].parse().unwrap();
    let t = Instant::now();
    let mut w = Worker::start(WorkerSpec { program: a[1].clone().into(), model: std::fs::File::open(&a[2]).unwrap(), device: DeviceChoice::Auto, threads: Some(threads), limits: WorkerLimits::default() }, |_, _| {}).await.unwrap();
    println!("load {:?} rss {} MB info {:?}", t.elapsed(), w.rss_bytes().unwrap() / 1_000_000, w.info());
    for (words, n) in [(20usize, 100u32), (300, 100), (1500, 20)] {
        let job = JobSpec { model: ContentHash::from_bytes([0; 32]), messages: vec![ChatMessage { role: Role::User, content: format!("Continue the story. {}", "the sea was calm and ".repeat(words / 5)) }], sampling: Sampling { max_tokens: n, temperature_milli: 800, top_p_milli: 950, seed: 3 } };
        let t = Instant::now();
        let mut run = w.generate(&job).await.unwrap();
        let (mut p, mut first, mut c) = (0, None, 0);
        while let Some(e) = run.next().await.unwrap() {
            match e { RunEvent::Started { prompt_tokens } => p = prompt_tokens, RunEvent::Output { .. } => { first.get_or_insert(t.elapsed()); } RunEvent::Finished { completion_tokens, .. } => c = completion_tokens }
        }
        let f = first.unwrap().as_secs_f64(); let all = t.elapsed().as_secs_f64();
        println!("prompt {p} tok: ttft {:.0} ms = {:.0} tok/s; decode {c} tok: {:.1} tok/s", f * 1e3, f64::from(p) / f, f64::from(c - 1) / (all - f));
        drop(run);
        println!("rss {} MB", w.rss_bytes().unwrap() / 1_000_000);
    }
    println!("{}", w.stop(Duration::from_secs(1)).await);
}
