//! `potluckd self-test`: does a model really run here, in its jail, on the device that is asked for?
//!
//! Owns: one short answer of the smallest model by a worker started as strangers' jobs start it, and
//! the canary in the same jail. Never: passes where it did not run: a machine without a card skips
//! `--gpu` and says so, or fails when `--require` was given.

use potluck_node::catalogue;
use potluck_protocol::job::{ChatMessage, JobSpec, Role, Sampling};
use potluck_sandbox::cpu::check_cpu;
use potluck_sandbox::engine::{DeviceChoice, EngineDevice};
use potluck_sandbox::supervisor::{RunEvent, Worker, WorkerLimits, WorkerSpec};
use serde_json::json;

use super::print_line;
use crate::error::CommandError;
use crate::jailing::{Jailing, Programs, has_card};
use crate::model_file::ModelFile;

const MODEL: &str = "smollm2-135m";
const TOKENS: u32 = 16;

pub(super) fn run(gpu: bool, require: bool, json: bool) -> Result<(), CommandError> {
    check_cpu()?;
    if gpu && !has_card() {
        if require {
            return Err(CommandError::SelfTest { what: "there is no NVIDIA card on this machine".into() });
        }
        let line = json!({"event": "self_test", "outcome": "skipped", "why": "no NVIDIA card"});
        print_line(&if json { line.to_string() } else { "skipped: no NVIDIA card on this machine".into() });
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CommandError::System { doing: "start the runtime", source })?;
    let device = if gpu { DeviceChoice::Cuda(0) } else { DeviceChoice::Cpu };
    let passed = runtime.block_on(try_device(device))?;
    let line = json!({
        "event": "self_test", "outcome": "passed", "device": passed.device, "text": passed.text,
        "jail": passed.jail,
    });
    let prose = format!("passed: {} answered in its jail\n  {}", passed.device, passed.jail);
    print_line(&if json { line.to_string() } else { prose });
    Ok(())
}

struct Passed {
    device: String,
    text: String,
    jail: String,
}

async fn try_device(device: DeviceChoice) -> Result<Passed, CommandError> {
    let failed = |what: String| CommandError::SelfTest { what };
    let programs = Programs::find()?;
    let model = ModelFile::open(MODEL)?;
    let protection =
        Jailing::Full.probe_models(&programs, device).await.map_err(|error| failed(error.to_string()))?;
    if !protection.is_jailed() {
        return Err(failed(protection.summary()));
    }
    let jail =
        Jailing::Full.for_model(device, model.bytes, None).map_err(|error| failed(error.to_string()))?;
    let spec = WorkerSpec {
        program: programs.model,
        model: model.reopen()?,
        device,
        threads: None,
        jail,
        limits: WorkerLimits::default(),
    };
    let mut worker = Worker::start(spec, |_, _| ())
        .await
        .map_err(|source| CommandError::Worker { model: MODEL.into(), source })?;
    let on = worker.info().device;
    if matches!(device, DeviceChoice::Cuda(_)) && !matches!(on, EngineDevice::Cuda { .. }) {
        return Err(failed(format!("the model runs on {on} and not on the card")));
    }
    let text = answer(&mut worker).await.map_err(failed)?;
    Ok(Passed { device: on.to_string(), text, jail: protection.summary() })
}

async fn answer(worker: &mut Worker) -> Result<String, String> {
    let model = catalogue::resolve(MODEL).map_err(|error| error.to_string())?;
    let job = JobSpec {
        model,
        messages: vec![ChatMessage { role: Role::User, content: "Name a planet with rings.".into() }],
        sampling: Sampling { max_tokens: TOKENS, temperature_milli: 0, top_p_milli: 1_000, seed: 0 },
    };
    let mut run = worker.generate(&job).await.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    while let Some(event) = run.next().await.map_err(|error| error.to_string())? {
        if let RunEvent::Output { text, .. } = event {
            answer.push_str(&text);
        }
    }
    if answer.trim().is_empty() { Err("the model answered nothing".into()) } else { Ok(answer) }
}
