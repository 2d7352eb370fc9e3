"""AMD SEV: the commands of KVM_MEMORY_ENCRYPT_OP. Every ``*_uaddr`` is an address of the client."""

from enum import IntEnum
from typing import Final

from kvmfs.abi.layout import Struct, u8, u16, u32, u64


class SevCommand(IntEnum):
    """``SevCmd.id``; in C, ``KVM_SEV_`` and the name."""

    INIT = 0
    ES_INIT = 1
    LAUNCH_START = 2
    LAUNCH_UPDATE_DATA = 3
    LAUNCH_UPDATE_VMSA = 4
    LAUNCH_SECRET = 5
    LAUNCH_MEASURE = 6
    LAUNCH_FINISH = 7
    SEND_START = 8
    SEND_UPDATE_DATA = 9
    SEND_UPDATE_VMSA = 10
    SEND_FINISH = 11
    RECEIVE_START = 12
    RECEIVE_UPDATE_DATA = 13
    RECEIVE_UPDATE_VMSA = 14
    RECEIVE_FINISH = 15
    GUEST_STATUS = 16
    DBG_DECRYPT = 17
    DBG_ENCRYPT = 18
    CERT_EXPORT = 19
    GET_ATTESTATION_REPORT = 20
    SEND_CANCEL = 21
    INIT2 = 22
    SNP_LAUNCH_START = 100
    SNP_LAUNCH_UPDATE = 101
    SNP_LAUNCH_FINISH = 102
    NR_MAX = 103


KVM_SEV_SNP_PAGE_TYPE_NORMAL: Final = 0x1
KVM_SEV_SNP_PAGE_TYPE_ZERO: Final = 0x3
KVM_SEV_SNP_PAGE_TYPE_UNMEASURED: Final = 0x4
KVM_SEV_SNP_PAGE_TYPE_SECRETS: Final = 0x5
KVM_SEV_SNP_PAGE_TYPE_CPUID: Final = 0x6
KVM_SEV_SNP_ID_BLOCK_SIZE: Final = 96
KVM_SEV_SNP_ID_AUTH_SIZE: Final = 4096
KVM_SEV_SNP_FINISH_DATA_SIZE: Final = 32


class SevCmd(Struct):
    c_name = "struct kvm_sev_cmd"
    _fields_ = (
        ("id", u32),
        ("pad0", u32),
        ("data", u64),
        ("error", u32),
        ("sev_fd", u32),
    )


class SevInit(Struct):
    c_name = "struct kvm_sev_init"
    _fields_ = (
        ("vmsa_features", u64),
        ("flags", u32),
        ("ghcb_version", u16),
        ("pad1", u16),
        ("pad2", u32 * 8),
    )


class SevLaunchStart(Struct):
    c_name = "struct kvm_sev_launch_start"
    _fields_ = (
        ("handle", u32),
        ("policy", u32),
        ("dh_uaddr", u64),
        ("dh_len", u32),
        ("pad0", u32),
        ("session_uaddr", u64),
        ("session_len", u32),
        ("pad1", u32),
    )


class SevLaunchUpdateData(Struct):
    c_name = "struct kvm_sev_launch_update_data"
    _fields_ = (
        ("uaddr", u64),
        ("len", u32),
        ("pad0", u32),
    )


class SevLaunchSecret(Struct):
    c_name = "struct kvm_sev_launch_secret"
    _fields_ = (
        ("hdr_uaddr", u64),
        ("hdr_len", u32),
        ("pad0", u32),
        ("guest_uaddr", u64),
        ("guest_len", u32),
        ("pad1", u32),
        ("trans_uaddr", u64),
        ("trans_len", u32),
        ("pad2", u32),
    )


class SevLaunchMeasure(Struct):
    c_name = "struct kvm_sev_launch_measure"
    _fields_ = (
        ("uaddr", u64),
        ("len", u32),
        ("pad0", u32),
    )


class SevGuestStatus(Struct):
    c_name = "struct kvm_sev_guest_status"
    _fields_ = (
        ("handle", u32),
        ("policy", u32),
        ("state", u32),
    )


class SevDbg(Struct):
    c_name = "struct kvm_sev_dbg"
    _fields_ = (
        ("src_uaddr", u64),
        ("dst_uaddr", u64),
        ("len", u32),
        ("pad0", u32),
    )


class SevAttestationReport(Struct):
    c_name = "struct kvm_sev_attestation_report"
    _fields_ = (
        ("mnonce", u8 * 16),
        ("uaddr", u64),
        ("len", u32),
        ("pad0", u32),
    )


class SevSendStart(Struct):
    c_name = "struct kvm_sev_send_start"
    _fields_ = (
        ("policy", u32),
        ("pad0", u32),
        ("pdh_cert_uaddr", u64),
        ("pdh_cert_len", u32),
        ("pad1", u32),
        ("plat_certs_uaddr", u64),
        ("plat_certs_len", u32),
        ("pad2", u32),
        ("amd_certs_uaddr", u64),
        ("amd_certs_len", u32),
        ("pad3", u32),
        ("session_uaddr", u64),
        ("session_len", u32),
        ("pad4", u32),
    )


class SevSendUpdateData(Struct):
    c_name = "struct kvm_sev_send_update_data"
    _fields_ = (
        ("hdr_uaddr", u64),
        ("hdr_len", u32),
        ("pad0", u32),
        ("guest_uaddr", u64),
        ("guest_len", u32),
        ("pad1", u32),
        ("trans_uaddr", u64),
        ("trans_len", u32),
        ("pad2", u32),
    )


class SevReceiveStart(Struct):
    c_name = "struct kvm_sev_receive_start"
    _fields_ = (
        ("handle", u32),
        ("policy", u32),
        ("pdh_uaddr", u64),
        ("pdh_len", u32),
        ("pad0", u32),
        ("session_uaddr", u64),
        ("session_len", u32),
        ("pad1", u32),
    )


class SevReceiveUpdateData(Struct):
    c_name = "struct kvm_sev_receive_update_data"
    _fields_ = (
        ("hdr_uaddr", u64),
        ("hdr_len", u32),
        ("pad0", u32),
        ("guest_uaddr", u64),
        ("guest_len", u32),
        ("pad1", u32),
        ("trans_uaddr", u64),
        ("trans_len", u32),
        ("pad2", u32),
    )


class SevSnpLaunchStart(Struct):
    c_name = "struct kvm_sev_snp_launch_start"
    _fields_ = (
        ("policy", u64),
        ("gosvw", u8 * 16),
        ("flags", u16),
        ("pad0", u8 * 6),
        ("pad1", u64 * 4),
    )


class SevSnpLaunchUpdate(Struct):
    c_name = "struct kvm_sev_snp_launch_update"
    _fields_ = (
        ("gfn_start", u64),
        ("uaddr", u64),
        ("len", u64),
        ("type", u8),
        ("pad0", u8),
        ("flags", u16),
        ("pad1", u32),
        ("pad2", u64 * 4),
    )


class SevSnpLaunchFinish(Struct):
    c_name = "struct kvm_sev_snp_launch_finish"
    _fields_ = (
        ("id_block_uaddr", u64),
        ("id_auth_uaddr", u64),
        ("id_block_en", u8),
        ("auth_key_en", u8),
        ("vcek_disabled", u8),
        ("host_data", u8 * KVM_SEV_SNP_FINISH_DATA_SIZE),
        ("pad0", u8 * 3),
        ("flags", u16),
        ("pad1", u64 * 4),
    )
