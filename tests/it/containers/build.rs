//! Writers of images that no tool on Linux makes: differencing VHD, VHDX and VDI, and the sparse
//! extents of ESX. Each follows its specification and shares no code with the readers.

/// A change of a child: `count` sectors from `sector` on, filled with one byte.
#[derive(Clone, Copy)]
pub struct Change {
    pub sector: usize,
    pub count: usize,
    pub byte: u8,
}

pub const fn change(sector: usize, count: usize, byte: u8) -> Change {
    Change { sector, count, byte }
}

/// The disk with the changes made.
pub fn changed(disk: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut disk = disk.to_vec();
    for change in changes {
        disk[change.sector * 512..(change.sector + change.count) * 512].fill(change.byte);
    }
    disk
}

/// Which sectors of `block` the changes touch.
fn touched(changes: &[Change], block: usize, sectors: usize) -> Vec<bool> {
    let touches = |sector: usize| changes.iter().any(|c| (c.sector..c.sector + c.count).contains(&sector));
    (0..sectors).map(|i| touches(block * sectors + i)).collect()
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn utf16le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn vhd_checksum(bytes: &mut [u8], field: usize) {
    bytes[field..field + 4].fill(0);
    let sum = !bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()));
    put(bytes, field, &sum.to_be_bytes());
}

/// A differencing VHD over `parent` (the file's bytes), whose disk is `disk`.
pub fn vhd_child(parent: &[u8], parent_name: &str, id: u8, disk: &[u8], changes: &[Change]) -> Vec<u8> {
    const BLOCK: usize = 2 << 20;
    let mut footer = parent[parent.len() - 512..].to_vec();
    let parent_id = footer[68..84].to_vec();
    put(&mut footer, 16, &512u64.to_be_bytes());
    put(&mut footer, 60, &4u32.to_be_bytes());
    put(&mut footer, 68, &[id; 16]);
    vhd_checksum(&mut footer, 64);

    let blocks = disk.len().div_ceil(BLOCK);
    let mut header = vec![0; 1024];
    put(&mut header, 0, b"cxsparse");
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &2048u64.to_be_bytes());
    put(&mut header, 24, &0x0001_0000u32.to_be_bytes());
    put(&mut header, 28, &(blocks as u32).to_be_bytes());
    put(&mut header, 32, &(BLOCK as u32).to_be_bytes());
    put(&mut header, 40, &parent_id);
    let name: Vec<u8> = parent_name.encode_utf16().flat_map(u16::to_be_bytes).collect();
    put(&mut header, 64, &name);
    let path = utf16le(&format!(".\\{parent_name}"));
    put(&mut header, 576, b"W2ru");
    put(&mut header, 580, &1u32.to_be_bytes());
    put(&mut header, 584, &(path.len() as u32).to_be_bytes());
    put(&mut header, 592, &1536u64.to_be_bytes());
    vhd_checksum(&mut header, 36);

    let mut out = [footer.clone(), header].concat();
    out.resize(2048, 0);
    put(&mut out, 1536, &path);
    let mut table = vec![0xffu8; (blocks * 4).next_multiple_of(512)];
    out.resize(2048 + table.len(), 0);
    let after = changed(disk, changes);
    for block in 0..blocks {
        let bits = touched(changes, block, BLOCK / 512);
        if !bits.contains(&true) {
            continue;
        }
        put(&mut table, block * 4, &((out.len() / 512) as u32).to_be_bytes());
        let mut bitmap = vec![0u8; 512];
        let mut data = vec![0xaa; BLOCK];
        for sector in (0..bits.len()).filter(|&sector| bits[sector]) {
            bitmap[sector / 8] |= 0x80 >> (sector % 8);
            let from = block * BLOCK + sector * 512;
            put(&mut data, sector * 512, &after[from..from + 512]);
        }
        out.extend(bitmap);
        out.extend(data);
    }
    put(&mut out, 2048, &table);
    out.extend(footer);
    out
}

fn guid(text: &str) -> Vec<u8> {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    let byte = |i: usize| u8::from_str_radix(&hex[i * 2..i * 2 + 2], 16).unwrap();
    [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].map(byte).to_vec()
}

fn guid_text(bytes: &[u8]) -> String {
    let hex = |order: &[usize]| order.iter().map(|&i| format!("{:02X}", bytes[i])).collect::<String>();
    let parts: [&[usize]; 5] = [&[3, 2, 1, 0], &[5, 4], &[7, 6], &[8, 9], &[10, 11, 12, 13, 14, 15]];
    parts.map(hex).join("-")
}

/// CRC-32C, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, &byte: &u8| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    };
    !bytes.iter().fold(!0, step)
}

/// A differencing VHDX over `parent`, in blocks of 1 MiB. A block that is wholly changed is fully
/// present, one that is changed to zeros has the state "zero", all others are partly present.
pub fn vhdx_child(parent: &[u8], parent_name: &str, id: u8, disk: &[u8], changes: &[Change]) -> Vec<u8> {
    const MIB: usize = 1 << 20;
    let sequence = |at: usize| u64::from_le_bytes(parent[at + 8..at + 16].try_into().unwrap());
    let active = if sequence(128 << 10) > sequence(64 << 10) { 128 << 10 } else { 64 << 10 };
    let linkage = guid_text(&parent[active + 32..active + 48]);
    let mut out = vec![0u8; 5 * MIB];
    put(&mut out, 0, b"vhdxfile");
    put(&mut out, 8, &utf16le("a test"));
    for (at, sequence) in [(64 << 10, 7u64), (128 << 10, 6)] {
        put(&mut out, at, b"head");
        put(&mut out, at + 8, &sequence.to_le_bytes());
        put(&mut out, at + 16, &[id; 32]);
        put(&mut out, at + 66, &1u16.to_le_bytes());
        put(&mut out, at + 68, &(MIB as u32).to_le_bytes());
        put(&mut out, at + 72, &(MIB as u64).to_le_bytes());
        let sum = crc(&out[at..at + 4096]);
        put(&mut out, at + 4, &sum.to_le_bytes());
    }
    for at in [192 << 10, 256 << 10] {
        put(&mut out, at, b"regi");
        put(&mut out, at + 8, &2u32.to_le_bytes());
        let regions = [("2DC27766-F623-4200-9D64-115E9BFD4A08", 3), ("8B7CA206-4790-4B9A-B8FE-575F050F886E", 2)];
        for (i, (kind, mib)) in regions.into_iter().enumerate() {
            let row = at + 16 + i * 32;
            put(&mut out, row, &guid(kind));
            put(&mut out, row + 16, &((mib * MIB) as u64).to_le_bytes());
            put(&mut out, row + 24, &(MIB as u32).to_le_bytes());
            put(&mut out, row + 28, &1u32.to_le_bytes());
        }
        let sum = crc(&out[at..at + (64 << 10)]);
        put(&mut out, at + 4, &sum.to_le_bytes());
    }
    let mut locator = guid("B04AEFB7-D19E-4A81-B789-25B8E9445913");
    let pairs = [("parent_linkage", format!("{{{linkage}}}")), ("relative_path", format!(".\\{parent_name}"))];
    locator.extend([0, 0, pairs.len() as u8, 0]);
    let mut texts = Vec::new();
    for (key, value) in &pairs {
        let (key, value) = (utf16le(key), utf16le(value));
        let start = (20 + pairs.len() * 12 + texts.len()) as u32;
        locator.extend(start.to_le_bytes());
        locator.extend((start + key.len() as u32).to_le_bytes());
        locator.extend((key.len() as u16).to_le_bytes());
        locator.extend((value.len() as u16).to_le_bytes());
        texts.extend([key, value].concat());
    }
    locator.extend(texts);
    let items = [
        ("CAA16737-FA36-4D43-B3B6-33F0AA44E76B", [(MIB as u32).to_le_bytes(), 2u32.to_le_bytes()].concat()),
        ("2FA54224-CD1B-4876-B211-5DBED83BF4B8", (disk.len() as u64).to_le_bytes().to_vec()),
        ("BECA12AB-B2E6-4523-93EF-C309E000C746", vec![id; 16]),
        ("8141BF1D-A96F-4709-BA47-F233A8FAAB5F", 512u32.to_le_bytes().to_vec()),
        ("CDA348C7-445D-4471-9CC9-E9885251C556", 4096u32.to_le_bytes().to_vec()),
        ("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C", locator),
    ];
    let metadata = 2 * MIB;
    put(&mut out, metadata, b"metadata");
    put(&mut out, metadata + 10, &(items.len() as u16).to_le_bytes());
    let mut offset = 64 << 10;
    for (i, (kind, bytes)) in items.into_iter().enumerate() {
        let row = metadata + 32 + i * 32;
        put(&mut out, row, &guid(kind));
        put(&mut out, row + 16, &(offset as u32).to_le_bytes());
        put(&mut out, row + 20, &(bytes.len() as u32).to_le_bytes());
        put(&mut out, row + 24, &if i == 0 || i == 5 { 4u32 } else { 6 }.to_le_bytes());
        put(&mut out, metadata + offset, &bytes);
        offset += bytes.len();
    }
    // One chunk of 4,096 blocks is enough; its bitmap block comes first, at 4 MiB.
    let (table, bitmap) = (3 * MIB, 4 * MIB);
    put(&mut out, table + 4096 * 8, &(bitmap as u64 | 6).to_le_bytes());
    let after = changed(disk, changes);
    for block in 0..disk.len().div_ceil(MIB) {
        let bits = touched(changes, block, 2048);
        if !bits.contains(&true) {
            continue;
        }
        let end = ((block + 1) * MIB).min(disk.len());
        let data = &after[block * MIB..end];
        let whole = !bits.contains(&false);
        if whole && data.iter().all(|&b| b == 0) {
            put(&mut out, table + block * 8, &2u64.to_le_bytes());
            continue;
        }
        let state = if whole { 6 } else { 7 };
        let place = out.len() as u64 | state;
        put(&mut out, table + block * 8, &place.to_le_bytes());
        for sector in 0..2048 {
            if bits[sector] {
                out[bitmap + block * 256 + sector / 8] |= 1 << (sector % 8);
            }
            let from = sector * 512;
            let stored = bits[sector] && from < data.len();
            out.extend_from_slice(if stored { &data[from..from + 512] } else { &[0xaa; 512] });
        }
    }
    out
}

/// A differencing VDI over `parent`; a block that is changed to zeros has the zero mark.
pub fn vdi_child(parent: &[u8], id: u8, disk: &[u8], changes: &[Change]) -> Vec<u8> {
    const BLOCK: usize = 1 << 20;
    let blocks = disk.len().div_ceil(BLOCK);
    let mut header = parent[..512].to_vec();
    put(&mut header, 76, &4u32.to_le_bytes());
    // Image, modification, parent, modification of the parent.
    put(&mut header, 392, &[id; 16]);
    put(&mut header, 408, &[!id; 16]);
    put(&mut header, 424, &parent[392..408]);
    put(&mut header, 440, &parent[408..424]);
    put(&mut header, 340, &512u32.to_le_bytes());
    put(&mut header, 344, &(BLOCK as u32).to_le_bytes());
    let mut out = header;
    out.resize(BLOCK, 0xff);
    let after = changed(disk, changes);
    let mut count = 0u32;
    for block in 0..blocks {
        if !touched(changes, block, BLOCK / 512).contains(&true) {
            continue;
        }
        let data = &after[block * BLOCK..((block + 1) * BLOCK).min(after.len())];
        if data.iter().all(|&b| b == 0) {
            put(&mut out, 512 + block * 4, &0xffff_fffe_u32.to_le_bytes());
            continue;
        }
        put(&mut out, 512 + block * 4, &count.to_le_bytes());
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        count += 1;
    }
    put(&mut out, 388, &count.to_le_bytes());
    out
}

/// An extent of a vmfsSparse disk: header, grain directory, tables of 4,096 entries, 4 KiB grains.
pub fn cowd(disk: &[u8]) -> Vec<u8> {
    let grains = disk.len().div_ceil(4096);
    let tables = grains.div_ceil(4096);
    let mut out = vec![0u8; 2048];
    put(&mut out, 0, b"COWD");
    for (at, value) in [(4, 1u32), (8, 3), (12, (disk.len() / 512) as u32), (16, 8), (20, 4), (24, tables as u32)] {
        put(&mut out, at, &value.to_le_bytes());
    }
    let first_table = 2048 + 512;
    out.resize(first_table + tables * 16_384, 0);
    for table in 0..tables {
        put(&mut out, 2048 + table * 4, &(((first_table + table * 16_384) / 512) as u32).to_le_bytes());
    }
    for (i, grain) in disk.chunks(4096).enumerate().filter(|(_, grain)| grain.iter().any(|&b| b != 0)) {
        let sector = (out.len() / 512) as u32;
        put(&mut out, first_table + i * 4, &sector.to_le_bytes());
        out.extend_from_slice(grain);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out
}

/// A seSparse extent: constant and volatile header, directory, tables of 4,096 entries, grains.
pub fn se_sparse(disk: &[u8]) -> Vec<u8> {
    let tables = disk.len().div_ceil(4096).div_ceil(4096);
    let (directory, first_table) = (1024, 2048);
    let grains = (first_table + tables * 32_768).next_multiple_of(4096);
    let mut out = vec![0u8; grains];
    let sectors = |bytes: usize| (bytes / 512) as u64;
    for (at, value) in [
        (0, 0xcafe_babe),
        (8, 0x0000_0002_0000_0001),
        (16, sectors(disk.len())),
        (24, 8),
        (32, 64),
        (80, 1),
        (88, 1),
        (128, sectors(directory)),
        (136, 2),
        (144, sectors(first_table)),
        (152, sectors(tables * 32_768)),
        (192, sectors(grains)),
        (200, sectors(disk.len())),
        (512, 0xcafe_cafe),
    ] {
        put(&mut out, at, &value.to_le_bytes());
    }
    for table in 0..tables {
        put(&mut out, directory + table * 8, &(0x1000_0000_0000_0000 | table as u64).to_le_bytes());
    }
    for (i, grain) in disk.chunks(4096).enumerate() {
        let entry = if grain.iter().all(|&b| b == 0) {
            [0, 0x1000_0000_0000_0000, 0x2000_0000_0000_0000][i % 3]
        } else {
            let number = ((out.len() - grains) / 4096) as u64;
            out.extend_from_slice(grain);
            out.resize(out.len().next_multiple_of(4096), 0);
            0x3000_0000_0000_0000 | (number & 0xfff) << 48 | number >> 12
        };
        put(&mut out, first_table + i * 8, &entry.to_le_bytes());
    }
    out
}
