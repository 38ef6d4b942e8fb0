//! Files in memory and kernels that are none, for tests and fuzz targets.

use std::collections::BTreeMap;

use crate::files::{Files, Found, Volume, VolumeId, join};
use crate::table::{Purpose, Scheme};

/// A disk's files.
#[derive(Clone, Debug, Default)]
pub struct MemoryFiles {
    volumes: Vec<Volume>,
    files: BTreeMap<(usize, String), Vec<u8>>,
}

impl MemoryFiles {
    /// Adds GPT partition `number` with a file system of this UUID.
    #[must_use]
    pub fn volume(mut self, number: u32, uuid: &str) -> Self {
        self.volumes.push(Volume {
            number,
            scheme: Scheme::Gpt,
            purpose: Purpose::Other,
            uuid: uuid.to_owned(),
            label: Some(format!("label{number}")),
            file_system: "ext2",
            partition_uuid: None,
        });
        self
    }

    /// Adds a file to the volume that was added last. Directories come by themselves.
    #[must_use]
    pub fn file(mut self, path: &str, contents: impl AsRef<[u8]>) -> Self {
        let volume = self.volumes.len().saturating_sub(1);
        self.files.insert((volume, join("/", path)), contents.as_ref().to_vec());
        self
    }
}

impl Files for MemoryFiles {
    fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    fn find(&self, volume: VolumeId, path: &str) -> Option<Found> {
        let path = join("/", path);
        if let Some(contents) = self.files.get(&(volume.0, path.clone())) {
            return Some(Found::File(contents.len() as u64));
        }
        (!self.list(volume, &path).is_empty()).then_some(Found::Directory)
    }

    fn read(&self, volume: VolumeId, path: &str, limit: u64) -> Option<Vec<u8>> {
        let contents = self.files.get(&(volume.0, join("/", path)))?;
        (contents.len() as u64 <= limit).then(|| contents.clone())
    }

    fn read_part(&self, volume: VolumeId, path: &str, offset: u64, buffer: &mut [u8]) -> Option<usize> {
        let contents = self.files.get(&(volume.0, join("/", path)))?;
        crate::unified::ReadAt::read_at(contents.as_slice(), offset, buffer).ok()
    }

    fn list(&self, volume: VolumeId, path: &str) -> Vec<String> {
        let top = join("/", path);
        let top = if top == "/" { top } else { format!("{top}/") };
        let mut names: Vec<String> = self
            .files
            .keys()
            .filter(|(number, _)| *number == volume.0)
            .filter_map(|(_, path)| path.strip_prefix(&top)?.split('/').next().map(str::to_owned))
            .collect();
        names.dedup();
        names
    }
}

/// A bzImage as far as a loader looks at one: its release, and a payload.
#[must_use]
pub fn bz_image(release: &str, payload: &[u8]) -> Vec<u8> {
    const SETUP_SECTORS: u8 = 3;
    const PAYLOAD_OFFSET: u32 = 0x40;
    const RELEASE_OFFSET: u16 = 0x300;
    let mut image = vec![0; (usize::from(SETUP_SECTORS) + 1) * 512 + PAYLOAD_OFFSET as usize];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[SETUP_SECTORS]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x20e, &RELEASE_OFFSET.to_le_bytes());
    put(0x248, &PAYLOAD_OFFSET.to_le_bytes());
    put(0x24c, &u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    put(0x200 + usize::from(RELEASE_OFFSET), release.as_bytes());
    put(
        0x200 + usize::from(RELEASE_OFFSET) + release.len(),
        b" (builder@host) #1 SMP\0",
    );
    image.extend_from_slice(payload);
    image
}
