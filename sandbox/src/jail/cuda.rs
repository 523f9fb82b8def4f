//! What a CUDA worker needs of the machine, found out before it starts.
//!
//! Owns: the list of device nodes, libraries, `/sys` folders, `/proc` details and environment
//! variables for one card. Never: loads the driver, makes a device node, or lists a display's node
//! (`nvidia-modeset`, `/dev/dri`) or another card's. Called by the daemon, which puts the answer into
//! [`super::JailPlan::cuda`].
//!
//! Inside, the chosen card is the only one, so its CUDA number there is 0.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::plan::{Bind, BindKind, PlacedFile};

/// Libraries by the beginning of their names: the driver's, then CUDA's that the worker links, then
/// the C library's, which the former load.
const LIBRARIES: [&str; 19] = [
    "libcuda.so",
    "libnvidia-ptxjitcompiler.so",
    "libnvidia-nvvm.so",
    "libnvidia-gpucomp.so",
    "libcudart.so",
    "libcublas.so",
    "libcublasLt.so",
    "libcurand.so",
    "libnvrtc.so",
    "libnvrtc-builtins.so",
    "libc.so.",
    "libm.so.",
    "libdl.so.",
    "librt.so.",
    "libpthread.so.",
    "libgcc_s.so.",
    "libstdc++.so.",
    "ld-linux-x86-64.so.",
    "ld-linux-aarch64.so.",
];

/// Where the loader looks beside what `/etc/ld.so.conf.d` names.
const LIBRARY_FOLDERS: [&str; 8] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "usr/local/cuda/lib64",
];

/// Paths that one plan binds at most.
const MAX_BINDS: usize = 256;

/// What a worker on one card needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// What of the machine is in its root.
    pub binds: Vec<Bind>,
    /// What is made for it.
    pub files: Vec<PlacedFile>,
    /// Its environment.
    pub environment: Vec<(String, String)>,
}

/// Why no worker can run on the card. Fault: local.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaError {
    /// A device node is missing.
    #[error("`{}` is missing (what helps: {remedy})", node.display())]
    NoNode {
        /// Which.
        node: PathBuf,
        /// What the owner can do.
        remedy: &'static str,
    },
    /// The driver's library is missing.
    #[error("the NVIDIA driver's library libcuda.so.1 is in none of the loader's folders")]
    NoDriver,
    /// More than a plan may bind.
    #[error("{count} files belong to this machine's CUDA; at most {MAX_BINDS} are taken into a jail")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// Finds what a worker on the card with the device number `card` (as in `/dev/nvidia0`) needs.
/// `root` is `/`.
///
/// # Errors
/// [`CudaError`].
pub fn prepare(root: &Path, card: u32) -> Result<Prepared, CudaError> {
    let mut tree = Tree { root, binds: BTreeMap::new() };
    let folders = if tree.has("dev/dxg") { windows(&mut tree)? } else { linux(&mut tree, card)? };
    if tree.binds.len() > MAX_BINDS {
        return Err(CudaError::TooMany { count: tree.binds.len() });
    }
    let path = folders.iter().map(|folder| format!("/{}", folder.display())).collect::<Vec<_>>().join(":");
    let constant = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Ok(Prepared {
        files: placed(root),
        binds: tree.binds.into_values().collect(),
        environment: vec![
            // Kernels are loaded before the seal, not when a stranger's job first needs them.
            constant("CUDA_MODULE_LOADING", "EAGER"),
            // Nothing to keep between two workers, and nowhere to keep it.
            constant("CUDA_CACHE_DISABLE", "1"),
            constant("LD_LIBRARY_PATH", &path),
        ],
    })
}

/// NVIDIA's own kernel driver.
fn linux(tree: &mut Tree<'_>, card: u32) -> Result<Vec<PathBuf>, CudaError> {
    let missing = "is the NVIDIA driver installed? `nvidia-smi` tells, and makes the node";
    tree.device("dev/nvidiactl", missing)?;
    tree.device(&format!("dev/nvidia{card}"), missing)?;
    tree.device("dev/nvidia-uvm", "`sudo nvidia-modprobe -u -c 0` makes it")?;
    // Since driver 570; before, there is nothing to ask of it.
    tree.add("dev/nvidia-uvm-tools", BindKind::Device);
    for module in tree.names("sys/module", |name| name == "nvidia" || name == "nvidia_uvm") {
        tree.add(&format!("sys/module/{module}"), BindKind::ReadOnly);
    }
    for folder in ["sys/devices/system/cpu", "sys/devices/system/node"] {
        tree.add(folder, BindKind::ReadOnly);
    }
    if let Some(address) = tree.pci_address(card) {
        tree.add(&format!("sys/bus/pci/devices/{address}"), BindKind::ReadOnly);
        tree.add_resolved(&format!("sys/bus/pci/devices/{address}"), BindKind::ReadOnly);
    }
    let folders = tree.libraries();
    let has_driver = tree.binds.keys().any(|target| target.ends_with("libcuda.so.1"));
    if has_driver { Ok(folders) } else { Err(CudaError::NoDriver) }
}

/// Windows' driver below WSL2: one node, and its libraries in a folder of their own.
fn windows(tree: &mut Tree<'_>) -> Result<Vec<PathBuf>, CudaError> {
    tree.device("dev/dxg", "update WSL: `wsl --update`")?;
    if !tree.has("usr/lib/wsl/lib/libcuda.so.1") {
        return Err(CudaError::NoDriver);
    }
    // Two mounts: their folder alone would be empty.
    tree.add("usr/lib/wsl/lib", BindKind::Library);
    tree.add("usr/lib/wsl/drivers", BindKind::Library);
    let mut folders = vec![PathBuf::from("usr/lib/wsl/lib")];
    folders.extend(tree.libraries());
    Ok(folders)
}

/// The files that differ inside.
fn placed(root: &Path) -> Vec<PlacedFile> {
    let target = PathBuf::from("/proc/driver/nvidia/params");
    let Ok(params) = fs::read_to_string(root.join("proc/driver/nvidia/params")) else { return Vec::new() };
    // The driver's library would try to make or change device nodes.
    let line = |line: &str| match line.split_once(':') {
        Some(("ModifyDeviceFiles", _)) => "ModifyDeviceFiles: 0\n".to_owned(),
        _ => format!("{line}\n"),
    };
    vec![PlacedFile { target, content: params.lines().map(line).collect() }]
}

/// The machine's files, and what has been chosen of them, by where the worker finds it.
struct Tree<'a> {
    root: &'a Path,
    binds: BTreeMap<PathBuf, Bind>,
}

impl Tree<'_> {
    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// Lists `path` if it is there. Its source is what the path leads to: no link is followed later.
    fn add(&mut self, path: &str, kind: BindKind) -> bool {
        let Ok(source) = self.root.join(path).canonicalize() else { return false };
        let target = Path::new("/").join(path);
        self.binds.insert(target.clone(), Bind { source, target, kind });
        true
    }

    /// The same at the place that `path` leads to: others refer to it by that name.
    fn add_resolved(&mut self, path: &str, kind: BindKind) {
        let Ok(source) = self.root.join(path).canonicalize() else { return };
        let Ok(root) = self.root.canonicalize() else { return };
        if let Ok(below) = source.strip_prefix(root) {
            let target = Path::new("/").join(below);
            self.binds.insert(target.clone(), Bind { source, target, kind });
        }
    }

    fn device(&mut self, node: &str, remedy: &'static str) -> Result<(), CudaError> {
        if self.add(node, BindKind::Device) {
            return Ok(());
        }
        Err(CudaError::NoNode { node: Path::new("/").join(node), remedy })
    }

    /// Names in a folder, in order; none when it is not there.
    fn names(&self, folder: impl AsRef<Path>, which: impl Fn(&str) -> bool) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join(folder)) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| which(name)).collect();
        names.sort();
        names
    }

    /// Lists the libraries; the folders in which there were any, in the loader's order. A library is
    /// taken from the first folder that has it, as the loader does.
    fn libraries(&mut self) -> Vec<PathBuf> {
        let mut seen = Vec::new();
        let mut folders = Vec::new();
        for folder in self.library_folders() {
            let names = self.names(&folder, |name| LIBRARIES.iter().any(|prefix| name.starts_with(prefix)));
            let before = seen.len();
            for name in names {
                let path = folder.join(&name);
                if !seen.contains(&name)
                    && path.to_str().is_some_and(|path| self.add(path, BindKind::Library))
                {
                    seen.push(name);
                }
            }
            if seen.len() > before {
                folders.push(folder);
            }
        }
        folders
    }

    /// The loader's folders, without the leading `/`.
    fn library_folders(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        for file in self.names("etc/ld.so.conf.d", |name| name.ends_with(".conf")) {
            let text = fs::read_to_string(self.root.join("etc/ld.so.conf.d").join(file)).unwrap_or_default();
            folders.extend(text.lines().filter_map(|line| line.trim().strip_prefix('/')).map(PathBuf::from));
        }
        folders.extend(LIBRARY_FOLDERS.map(PathBuf::from));
        folders.dedup();
        folders
    }

    /// The address on the bus of the card with this device number.
    fn pci_address(&self, card: u32) -> Option<String> {
        let gpus = self.root.join("proc/driver/nvidia/gpus");
        self.names(&gpus, |_| true).into_iter().find(|address| {
            let text = fs::read_to_string(gpus.join(address).join("information")).unwrap_or_default();
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .any(|(name, value)| name.trim() == "Device Minor" && value.trim().parse() == Ok(card))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A machine with two cards, as a driver of the 570 series leaves it.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for node in ["ctl", "0", "1", "-uvm", "-uvm-tools", "-modeset"] {
            file(&format!("dev/nvidia{node}"), "");
        }
        file("dev/dri/card0", "");
        file(
            "proc/driver/nvidia/params",
            "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileMode: 438\n",
        );
        for (address, minor) in [("0000:01:00.0", 0), ("0000:41:00.0", 1)] {
            let text = format!("Model: \t\t NVIDIA H100\nDevice Minor: \t {minor}\n");
            file(&format!("proc/driver/nvidia/gpus/{address}/information"), &text);
            file(&format!("sys/devices/pci0000:00/{address}/vendor"), "0x10de\n");
            fs::create_dir_all(root.path().join("sys/bus/pci/devices")).unwrap();
            symlink(
                format!("../../../devices/pci0000:00/{address}"),
                root.path().join(format!("sys/bus/pci/devices/{address}")),
            )
            .unwrap();
        }
        for module in ["nvidia", "nvidia_uvm", "nvidia_drm", "snd"] {
            file(&format!("sys/module/{module}/version"), "570.1\n");
        }
        file("sys/devices/system/cpu/online", "0-15\n");
        let libraries = "usr/lib/x86_64-linux-gnu";
        file(&format!("{libraries}/libcuda.so.570.1"), "");
        symlink("libcuda.so.570.1", root.path().join(libraries).join("libcuda.so.1")).unwrap();
        file(&format!("{libraries}/libX11.so.6"), "");
        file("opt/cuda/lib64/libcublas.so.12", "");
        file("etc/ld.so.conf.d/cuda.conf", "# CUDA\n/opt/cuda/lib64\n");
        root
    }

    fn targets(prepared: &Prepared, kind: BindKind) -> Vec<&str> {
        prepared.binds.iter().filter(|b| b.kind == kind).map(|b| b.target.to_str().unwrap()).collect()
    }

    #[test]
    fn one_card_and_nothing_that_draws() {
        let root = machine();
        let prepared = prepare(root.path(), 1).unwrap();
        let nodes = ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia1", "/dev/nvidiactl"];
        assert_eq!(targets(&prepared, BindKind::Device), nodes);
        let readable = [
            "/sys/bus/pci/devices/0000:41:00.0",
            "/sys/devices/pci0000:00/0000:41:00.0",
            "/sys/devices/system/cpu",
            "/sys/module/nvidia",
            "/sys/module/nvidia_uvm",
        ];
        assert_eq!(targets(&prepared, BindKind::ReadOnly), readable);
        let libraries = [
            "/opt/cuda/lib64/libcublas.so.12",
            "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
            "/usr/lib/x86_64-linux-gnu/libcuda.so.570.1",
        ];
        assert_eq!(targets(&prepared, BindKind::Library), libraries);
        // No source is a link, so that none can be turned elsewhere.
        assert!(prepared.binds.iter().all(|bind| bind.source == bind.source.canonicalize().unwrap()));
        let params = &prepared.files[0];
        assert_eq!(params.target, Path::new("/proc/driver/nvidia/params"));
        assert_eq!(
            params.content,
            "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 0\nDeviceFileMode: 438\n"
        );
        let variable =
            |name: &str| prepared.environment.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(variable("LD_LIBRARY_PATH"), Some("/opt/cuda/lib64:/usr/lib/x86_64-linux-gnu"));
        assert_eq!(
            (variable("CUDA_MODULE_LOADING"), variable("CUDA_CACHE_DISABLE")),
            (Some("EAGER"), Some("1"))
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let root = machine();
        fs::remove_file(root.path().join("dev/nvidia-uvm")).unwrap();
        let error = prepare(root.path(), 0).unwrap_err();
        assert!(error.to_string().contains("nvidia-modprobe -u"), "{error}");
        let error = prepare(machine().path(), 7).unwrap_err();
        assert!(matches!(error, CudaError::NoNode { node, .. } if node == Path::new("/dev/nvidia7")));
        let root = machine();
        fs::remove_file(root.path().join("usr/lib/x86_64-linux-gnu/libcuda.so.1")).unwrap();
        assert_eq!(prepare(root.path(), 0), Err(CudaError::NoDriver));
    }

    #[test]
    fn below_windows_there_is_one_node_and_one_folder() {
        let root = tempfile::tempdir().unwrap();
        for file in ["dev/dxg", "usr/lib/wsl/lib/libcuda.so.1", "usr/lib/wsl/drivers/nv.inf"] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let prepared = prepare(root.path(), 0).unwrap();
        assert_eq!(targets(&prepared, BindKind::Device), ["/dev/dxg"]);
        assert_eq!(targets(&prepared, BindKind::Library), ["/usr/lib/wsl/drivers", "/usr/lib/wsl/lib"]);
        fs::remove_file(root.path().join("usr/lib/wsl/lib/libcuda.so.1")).unwrap();
        assert_eq!(prepare(root.path(), 0), Err(CudaError::NoDriver));
    }
}
