//! The `ledger` verbs of both programs, over a true ledger and without a network.
//!
//! Owns: a state folder with the three peers' story in it, what each verb prints in each form, and what
//! hostile files do. Never: starts a daemon (the stories do) or waits for one. Run by `make test`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking")]

#[path = "../../protocol/tests/common/books.rs"]
mod books;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use books::{Job, jobs, key, proof, steps};
use potluck_node::identity::Identity;
use potluck_node::ledger::{Kept, Ledger};
use potluck_node::state::StateDir;
use potluck_protocol::id::{PeerId, hex};
use potluck_protocol::statement::Statement;
use potluck_tests::programs::program;
use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAMS: [&str; 2] = ["potluck", "potluckd"];

/// A home with a state folder of the peer with key `seed`.
struct Home(TempDir);

impl Home {
    /// Of key `seed`, with `statements` in its ledger.
    fn with(seed: u8, statements: Vec<Statement>) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let state = StateDir::open(&home.state()).unwrap();
        let text = format!("potluck-ed25519-v1 {}\n", hex(&key(seed).seed()));
        fs::write(state.key_path(), text).unwrap();
        fs::set_permissions(state.key_path(), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Identity::load_or_create(&state.key_path()).unwrap().peer(), key(seed).peer());
        let (ledger, _) = Ledger::open(&state.ledger_dir(), key(seed).peer()).unwrap();
        let kept = runtime().block_on(ledger.keep_each(statements)).unwrap();
        assert!(kept.iter().all(|kept| *kept == Kept::New), "{kept:?}");
        home
    }

    /// The story of peer 1: jobs with two others, an agreed balance, a proof.
    fn of_the_story() -> Self {
        let home = Self::with(1, story());
        let (ledger, _) = Ledger::open(&home.state().join("ledger"), key(1).peer()).unwrap();
        assert!(runtime().block_on(ledger.keep_proof(proof())).unwrap());
        home
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `PROGRAM ledger WORDS` for this state folder.
    fn ledger(&self, name: &str, words: &[&str]) -> Output {
        ledger(name, Some(&self.state()), self.0.path(), words)
    }

    /// The JSON lines of a verb that succeeds.
    fn json(&self, name: &str, words: &[&str]) -> Vec<Value> {
        let words = [words, &["--json"]].concat();
        let output = self.ledger(name, &words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        lines(&output).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The lines on stdout of a verb that succeeds.
    fn text(&self, name: &str, words: &[&str]) -> Vec<String> {
        let output = self.ledger(name, words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        lines(&output)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn story() -> Vec<Statement> {
    steps().into_iter().chain(jobs().into_iter().flat_map(|job| job.statements())).collect()
}

fn ledger(name: &str, state: Option<&Path>, home: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(program(name).unwrap());
    command.arg("ledger").args(words).current_dir(home);
    // Without one it would be the user's own.
    command.env("XDG_DATA_HOME", home.join("nobody")).env("HOME", home.join("nobody"));
    if let Some(state) = state {
        command.arg("--state-dir").arg(state);
    }
    command.output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn peer(seed: u8) -> PeerId {
    key(seed).peer()
}

fn amount_of(job: &Job) -> i64 {
    i64::try_from(job.amount().get()).unwrap()
}

fn job(lane: u64) -> Job {
    jobs().into_iter().find(|job| job.lane == lane).unwrap()
}

/// What peer 2 owes peer 1 in the story: by hand.
fn owed_by_2() -> i64 {
    // 1 rents twice (7, 9) and works once (8), and has paid 50,000.
    amount_of(&job(8)) - amount_of(&job(7)) - amount_of(&job(9)) + 50_000
}

#[test]
fn balances_in_each_form() {
    let home = Home::of_the_story();
    for name in PROGRAMS {
        let found = home.json(name, &["balance"]);
        let (second, third) = (owed_by_2(), amount_of(&job(5)));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["peer"], json!(peer(1)));
        assert_eq!(found[0]["balance_nanocredits"], json!(second + third));
        let with_2 = json!({"peer": peer(2), "balance_nanocredits": second, "lanes": 3, "open": 0});
        assert!(found[0]["pairs"].as_array().unwrap().contains(&with_2), "{found:?}");
        assert_eq!(
            keys(&found[0]),
            ["balance_nanocredits", "owed_to_us_nanocredits", "pairs", "peer", "we_owe_nanocredits"]
        );
        let csv = home.text(name, &["balance", "--csv"]);
        assert_eq!(csv[0], "peer,balance_nanocredits,lanes,open");
        assert!(csv.contains(&format!("{},{second},3,0", peer(2))), "{csv:?}");
        let output = home.ledger(name, &["balance"]);
        assert!(lines(&output)[0].starts_with("balance   "), "{output:?}");
        assert!(stderr(&output).contains("IOUs"), "prose goes to stderr: {output:?}");
    }
}

#[test]
fn accounts_say_what_was_paid_agreed_and_who_is_frozen() {
    let home = Home::of_the_story();
    for name in PROGRAMS {
        let found = home.json(name, &["pairs"]);
        let with = |seed| found.iter().find(|pair| pair["peer"] == json!(peer(seed))).unwrap();
        let second = with(2);
        assert_eq!(second["balance_nanocredits"], json!(owed_by_2()));
        assert_eq!(
            (&second["paid_nanocredits"], &second["settled_nanocredits"]),
            (&json!(50_000), &json!(0))
        );
        assert_eq!((&second["epoch"], &second["step"]), (&json!(1), &json!(1)));
        assert_eq!((&second["frozen"], &with(3)["frozen"]), (&json!(false), &json!(true)));
        assert_eq!(
            keys(second),
            [
                "balance_nanocredits",
                "credit_used_nanocredits",
                "epoch",
                "floor_unix_ms",
                "frozen",
                "lanes",
                "open",
                "open_caps_nanocredits",
                "paid_nanocredits",
                "peer",
                "settled_nanocredits",
                "step",
                "waiting"
            ]
        );
        let csv = home.text(name, &["pairs", "--csv"]);
        assert!(
            csv[0].starts_with("peer,balance_nanocredits,settled_nanocredits,paid_nanocredits"),
            "{csv:?}"
        );
        assert_eq!((csv.len(), csv[0].split(',').count()), (3, csv[1].split(',').count()));
        let table = home.text(name, &["pairs"]).join("\n");
        assert!(table.contains("PEER") && table.contains("frozen"), "{table}");
    }
}

#[test]
fn a_proposal_that_waits_for_the_owner_is_shown_with_its_reference() {
    // The same story, as 2 sees it before it answered.
    let home = Home::with(2, steps().into_iter().take(1).collect());
    for name in PROGRAMS {
        let found = home.json(name, &["pairs"]);
        let waiting = &found[0]["waiting"][0];
        assert_eq!(waiting["waits_for"], "us");
        assert_eq!(waiting["reference"], "invoice 2026-07 · 蓝");
        assert_eq!((&waiting["payer"], &waiting["amount_nanocredits"]), (&json!(peer(1)), &json!(50_000)));
        let output = home.ledger(name, &["pairs"]);
        assert!(lines(&output).join("\n").contains("waits for you"), "{output:?}");
        assert!(stderr(&output).contains("invoice 2026-07"), "{output:?}");
    }
}

#[test]
fn receipts_are_filtered_and_keep_their_columns() {
    let home = Home::of_the_story();
    for name in PROGRAMS {
        let all = home.json(name, &["receipts"]);
        let order: Vec<_> = all.iter().map(|it| it["job"].as_str().unwrap().to_owned()).collect();
        assert_eq!(order, [9, 5, 8, 7].map(|lane| job(lane).id().to_string()), "newest first");
        assert_eq!(
            keys(&all[0]),
            [
                "amount_nanocredits",
                "closed_unix_ms",
                "completion_tokens",
                "contract",
                "gpu_ms",
                "guest_ms",
                "job",
                "load_ms",
                "max_total_nanocredits",
                "model",
                "model_name",
                "opened_unix_ms",
                "peer",
                "prompt_tokens",
                "reason",
                "receipt",
                "receipts",
                "role",
                "run_ms",
                "vouchers"
            ]
        );
        let seventh = &all[3];
        assert_eq!((&seventh["role"], &seventh["reason"]), (&json!("renter"), &json!("completed")));
        assert_eq!(seventh["amount_nanocredits"], json!(amount_of(&job(7))));
        assert_eq!(seventh["receipt"], json!(job(7).receipt(3).digest()));
        let count = |words: &[&str]| home.json(name, words).len();
        assert_eq!(count(&["receipts", "--limit", "2"]), 2);
        assert_eq!(count(&["receipts", "--peer", &peer(3).to_string()]), 1);
        assert_eq!(count(&["receipts", "--job", &job(8).id().to_string()]), 1);
        assert_eq!(count(&["receipts", "--since", "2023-11-14T22:13:22Z"]), 2);
        assert_eq!(count(&["receipts", "--since", "1d"]), 0);
        let csv = home.text(name, &["receipts", "--csv"]);
        assert_eq!((csv.len(), csv[0].split(',').count(), csv[1].split(',').count()), (5, 20, 20));
        let table = home.text(name, &["receipts"]);
        assert!(table[0].starts_with("JOB") && table[1].contains("2023-11-15 00:43:20Z"), "{table:?}");
        let wrong = home.ledger(name, &["receipts", "--job", "nonsense"]);
        assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn every_object_of_a_job_is_shown_and_found_by_its_digest() {
    let home = Home::of_the_story();
    let seventh = job(7);
    let id = seventh.id().to_string();
    for name in PROGRAMS {
        let all = home.json(name, &["show", &id]);
        assert_eq!(all.len(), seventh.statements().len());
        assert_eq!(keys(&all[0]), ["about", "body", "digest", "job", "kind", "signed", "signer"]);
        let voucher = seventh.voucher(2);
        let digest = voucher.digest().to_string();
        let shown = all.iter().find(|it| it["digest"] == json!(digest)).unwrap();
        assert_eq!((&shown["kind"], &shown["signer"]), (&json!("voucher"), &json!(peer(1))));
        assert_eq!(shown["body"]["amount"], json!(voucher.body().amount.get()));
        let bytes = potluck_protocol::wire::encode(voucher.signed()).unwrap();
        assert_eq!(shown["signed"], json!(hex(&bytes)));
        let again = home.json(name, &["show", &digest[..15]]);
        assert_eq!((again.len(), again.first()), (1, Some(&shown)));
        let text = home.text(name, &["show", &digest[..15]]).join("\n");
        assert!(text.contains("voucher 2 of job_") && text.contains("amount"), "{text}");
        let none = home.ledger(name, &["show", "job_ffff", "--json"]);
        assert_eq!(none.status.code(), Some(1), "{none:?}");
        let said: Value = serde_json::from_str(&lines(&none)[0]).unwrap();
        assert_eq!((&said["event"], &said["code"]), (&json!("error"), &json!("not_found")));
    }
}

#[test]
fn a_bill_is_explained_to_the_nano_credit() {
    let home = Home::of_the_story();
    let seventh = job(7);
    let id = seventh.id().to_string();
    for name in PROGRAMS {
        let found = home.json(name, &["explain", &id]).remove(0);
        assert_eq!(found["formula"], "floor((38888 × 2991 + 13888 × 250) / 1000)");
        assert_eq!(
            (&found["exact_nanocredits"], &found["amount_nanocredits"]),
            (&json!("119786.008"), &json!(119_786))
        );
        assert_eq!(found["steps"].as_array().unwrap().len(), 3);
        assert_eq!(found["steps"][1]["voucher"], json!(seventh.voucher(2).digest()));
        assert_eq!((&found["thinned"], &found["agreed_in"]), (&json!(false), &json!([0, 1])));
        assert_eq!((&found["reason"], &found["ended_by"]), (&json!("completed"), &json!(peer(2))));
        let text = home.text(name, &["explain", &id]).join("\n");
        for part in [
            "we rented from",
            "$0.14/h",
            "floor((38888 × 2991 + 13888 × 250) / 1000) = floor(119786.008)",
            "= 119786 nano-credits = $0.000119786",
            "in the renter's favour",
            "completed (stop)",
            "both have signed a balance since",
        ] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
        let given_up = home.text(name, &["explain", &job(9).id().to_string()]).join("\n");
        assert!(given_up.contains("given up by us"), "{given_up}");
    }
}

#[test]
fn an_export_restores_the_same_balances_and_is_checked_anywhere() {
    for name in PROGRAMS {
        let home = Home::of_the_story();
        let (before, pairs) = (home.json(name, &["balance"]), home.json(name, &["pairs"]));
        let written = home.json(name, &["export", "backup.potluck"]).remove(0);
        assert_eq!(keys(&written), ["bytes", "chain", "entries", "file", "owner", "peer"]);
        let file = home.file("backup.potluck");
        assert_eq!(json!(fs::metadata(&file).unwrap().len()), written["bytes"]);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // On another machine: no state folder, and none is made.
        let elsewhere = tempfile::tempdir().unwrap();
        let checked = ledger(name, None, elsewhere.path(), &["verify", file.to_str().unwrap(), "--json"]);
        assert!(checked.status.success(), "{checked:?}");
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "verify made something");
        let rows: Vec<Value> = lines(&checked).iter().map(|it| serde_json::from_str(it).unwrap()).collect();
        let with_2 = rows.iter().find(|it| it["peer"] == json!(peer(2))).unwrap();
        assert_eq!((&with_2["kind"], &with_2["balance_nanocredits"]), (&json!("pair"), &json!(owed_by_2())));
        assert_eq!((&with_2["agreed"], &with_2["agreed_unproven"]), (&json!(1), &json!(0)));
        let whole = rows.last().unwrap();
        assert_eq!(
            (&whole["kind"], &whole["faults"], &whole["proofs"]),
            (&json!("file"), &json!(0), &json!(1))
        );
        assert_eq!(whole["balance_nanocredits"], before[0]["balance_nanocredits"]);
        // The same again holds the same.
        let again = home.json(name, &["export", "again.potluck"]).remove(0);
        assert_eq!(again["entries"], written["entries"]);
        // Lost, and restored.
        fs::remove_dir_all(home.state().join("ledger")).unwrap();
        let restored = home.json(name, &["import", "backup.potluck"]).remove(0);
        let entries = written["entries"].as_u64().unwrap();
        assert_eq!((&restored["new"], &restored["proofs"]), (&json!(entries - 1), &json!(1)));
        assert_eq!(
            (&restored["known"], &restored["conflicting"], &restored["foreign"]),
            (&json!(0), &json!(0), &json!(0))
        );
        // 3 is owed nothing that we had signed but accepts, meters and receipts: with both the epoch rises.
        assert_eq!(restored["epochs_raised"], json!(2));
        assert_eq!(home.json(name, &["balance"]), before);
        let now = home.json(name, &["pairs"]);
        for (now, before) in now.iter().zip(&pairs) {
            assert_eq!(now["balance_nanocredits"], before["balance_nanocredits"]);
            assert_eq!(now["epoch"].as_u64(), before["epoch"].as_u64().map(|epoch| epoch + 1));
        }
        let twice = home.json(name, &["import", "backup.potluck"]).remove(0);
        assert_eq!((&twice["new"], &twice["known"]), (&json!(0), &json!(entries - 1)));
        assert_eq!((&twice["proofs"], &twice["epochs_raised"]), (&json!(0), &json!(0)));
        let check = home.json(name, &["check"]).remove(0);
        assert_eq!(keys(&check), ["dropped", "objects", "records"]);
    }
}

#[test]
fn an_export_of_one_peer_holds_nothing_of_others() {
    let home = Home::of_the_story();
    for name in PROGRAMS {
        let written = home.json(name, &["export", "one.potluck", "--peer", &peer(2).to_string()]).remove(0);
        assert_eq!(written["peer"], json!(peer(2)));
        let rows = home.json(name, &["verify", "one.potluck"]);
        assert_eq!((rows.len(), &rows[0]["peer"], &rows[1]["proofs"]), (2, &json!(peer(2)), &json!(0)));
    }
}

#[test]
fn what_was_changed_is_refused_and_changes_nothing() {
    let home = Home::of_the_story();
    let other = Home::with(1, Vec::new());
    home.json("potluck", &["export", "true.potluck"]);
    let whole = fs::read(home.file("true.potluck")).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let frames = books::frames(&whole);
    let doubled = [&whole[..frames[5]], &whole[frames[4]..]].concat();
    for (bytes, what) in [
        (flipped, "changed"),
        (whole[..whole.len() - 1].to_vec(), "cut off"),
        (doubled, "changed"),
        ([whole.as_slice(), b"x"].concat(), "follows the seal"),
        (Vec::new(), "not an export file"),
        (b"a letter\n".to_vec(), "not an export file"),
    ] {
        fs::write(other.file("bad.potluck"), bytes).unwrap();
        for name in PROGRAMS {
            for verb in ["verify", "import"] {
                let refused = other.ledger(name, &[verb, "bad.potluck"]);
                assert_eq!(refused.status.code(), Some(1), "{verb} {what}: {refused:?}");
                assert!(stderr(&refused).contains(what), "{what}: {refused:?}");
            }
            assert_eq!(other.json(name, &["check"])[0]["records"], json!(0), "something was kept of it");
        }
    }
}

#[test]
fn the_ledger_of_another_is_verified_and_not_taken_in() {
    let (home, other) = (Home::of_the_story(), Home::with(2, Vec::new()));
    home.json("potluck", &["export", "hers.potluck"]);
    fs::copy(home.file("hers.potluck"), other.file("hers.potluck")).unwrap();
    for name in PROGRAMS {
        assert!(other.ledger(name, &["verify", "hers.potluck"]).status.success());
        let refused = other.ledger(name, &["import", "hers.potluck"]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = stderr(&refused);
        assert!(said.contains(&peer(1).to_string()) && said.contains(&peer(2).to_string()), "{said}");
        assert_eq!(other.json(name, &["check"])[0]["records"], json!(0));
    }
}

#[test]
fn a_conflict_becomes_a_proof_that_convicts_anywhere() {
    // Before the disk was lost, 2 had signed another meter.
    let seventh = job(7);
    let mut meter = seventh.meter(1).body().clone();
    meter.tokens += 1;
    let meter: Statement = key(2).sign(meter).unwrap().into_signed().into();
    for name in PROGRAMS {
        let (home, other) = (Home::with(1, story()), Home::with(1, vec![meter.clone()]));
        home.json(name, &["export", "true.potluck"]);
        fs::copy(home.file("true.potluck"), other.file("true.potluck")).unwrap();
        let taken = other.json(name, &["import", "true.potluck"]).remove(0);
        assert_eq!((&taken["conflicting"], &taken["proofs"]), (&json!(1), &json!(1)), "{taken}");
        let proofs = other.json(name, &["proofs"]);
        assert_eq!((proofs.len(), &proofs[0]["peer"]), (1, &json!(peer(2))));
        assert_eq!(keys(&proofs[0]), ["digest", "peer", "place"]);
        let cheat = peer(2).to_string();
        let written = other.json(name, &["proof", &cheat, "--out", "cheat.proof"]).remove(0);
        assert_eq!(keys(&written), ["bytes", "digest", "file", "peer", "place"]);
        let elsewhere = tempfile::tempdir().unwrap();
        let file = other.file("cheat.proof");
        let words = ["verify-proof", file.to_str().unwrap()];
        let convicts = ledger(name, None, elsewhere.path(), &words);
        assert!(convicts.status.success() && lines(&convicts)[0].contains(&cheat), "{convicts:?}");
        let mut bytes = fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(ledger(name, None, elsewhere.path(), &words).status.code(), Some(1));
        let none = other.ledger(name, &["proof", &peer(3).to_string(), "--out", "none.proof"]);
        assert_eq!(none.status.code(), Some(1), "{none:?}");
        assert!(!other.file("none.proof").exists());
    }
}

#[test]
fn a_lost_or_broken_index_changes_no_answer() {
    let home = Home::of_the_story();
    let asks: [&[&str]; 4] = [&["balance"], &["pairs"], &["receipts"], &["proofs"]];
    let answers = |name| asks.iter().flat_map(|words| home.json(name, words)).collect::<Vec<_>>();
    let before = answers("potluck");
    let index = home.state().join("ledger/index");
    for name in PROGRAMS {
        fs::remove_dir_all(&index).unwrap();
        assert_eq!(answers(name), before, "without its index");
        let db = index.join("db");
        let mut bytes = fs::read(&db).unwrap();
        bytes.iter_mut().skip(64).step_by(97).for_each(|byte| *byte ^= 0x5a);
        fs::write(&db, bytes).unwrap();
        assert_eq!(answers(name), before, "with a broken index");
    }
}

#[test]
fn nothing_half_done_stays_and_no_strange_file_is_touched() {
    let home = Home::of_the_story();
    fs::write(home.file("letter.txt"), "dear diary").unwrap();
    fs::create_dir(home.file("folder")).unwrap();
    let pipe = home.file("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(home.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    for name in PROGRAMS {
        for (words, code) in [
            (&["export", "letter.txt"][..], 2),
            (&["export", "folder"], 2),
            (&["export", "pipe"], 2),
            (&["export", "nowhere/backup.potluck"], 5),
            (&["export", "/dev/full"], 2),
            (&["verify", "folder"], 2),
            (&["verify", "pipe"], 2),
            (&["verify", "/dev/zero"], 2),
            (&["verify", "nowhere"], 5),
            (&["import", "folder"], 2),
            (&["import", "letter.txt"], 1),
            (&["verify-proof", "letter.txt"], 1),
            (&["verify-proof", "pipe"], 2),
        ] {
            let refused = home.ledger(name, words);
            assert_eq!(refused.status.code(), Some(code), "{words:?}: {refused:?}");
            assert!(!stderr(&refused).contains("panicked") && !stderr(&refused).is_empty(), "{refused:?}");
        }
        assert_eq!(names(), before);
        assert_eq!(fs::read_to_string(home.file("letter.txt")).unwrap(), "dear diary");
    }
}

/// A disk with room for one export and not for two, in a mount namespace of its own.
#[test]
fn a_full_disk_leaves_the_old_export_and_no_draft() {
    let home = Home::of_the_story();
    home.json("potluck", &["export", "true.potluck"]);
    fs::create_dir(home.file("disk")).unwrap();
    let pages = fs::metadata(home.file("true.potluck")).unwrap().len().div_ceil(4_096) + 1;
    for name in PROGRAMS {
        let script = format!(
            "mount -t tmpfs -o size={} none disk && cp true.potluck disk/old.potluck || exit 99
            {} ledger export disk/old.potluck --state-dir state; code=$?
            cmp true.potluck disk/old.potluck && ls -A disk; exit $code",
            pages * 4_096,
            program(name).unwrap().display(),
        );
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "bash", "-c", &script]);
        let refused = command.current_dir(home.0.path()).output().unwrap();
        assert_eq!(refused.status.code(), Some(5), "{refused:?}");
        assert!(stderr(&refused).contains("No space left on device"), "{refused:?}");
        assert_eq!(lines(&refused), ["old.potluck"], "a draft stayed, or the old file did not");
    }
}

/// Sparse, so that it takes no room: a reader that read on, or held it, would show.
#[test]
fn a_file_of_ten_gigabytes_is_refused_where_it_goes_wrong() {
    let home = Home::of_the_story();
    home.json("potluck", &["export", "long.potluck"]);
    let whole = fs::metadata(home.file("long.potluck")).unwrap().len();
    let file = fs::File::options().write(true).open(home.file("long.potluck")).unwrap();
    file.set_len(10 << 30).unwrap();
    for name in PROGRAMS {
        let script = format!(
            "ulimit -v 1000000; exec {} ledger verify long.potluck",
            program(name).unwrap().display()
        );
        let mut command = Command::new("bash");
        let refused = command.arg("-c").arg(script).current_dir(home.0.path()).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(stderr(&refused).contains(&format!("follows the seal, at byte {whole}")), "{refused:?}");
    }
}
