"""What is to be set in GMS, in Chat Server and in the chat application so that pushes come, by its names there."""

from __future__ import annotations


def in_gms(url: str, secret_lies: str, where: str) -> str:
    """The options and their values. `url` is that of pushes with HOST and SECRET in it, `secret_lies` says where the
    secret stands, `where` in which program a chat begins."""
    return f"""Section [push] of GMS, then restart GMS:
   pushEnabled       the list it has, with customhttp added
   customhttp.url    {url}
                     HOST is this host as GMS reaches it, SECRET {secret_lies}
   Section [chat] of GMS: enable_notification_mode = true
   Each Chat Server: flex-push-on-join = true, and a listening port with the id health
   userData of "request chat", {where}:
                     GCTI_Chat_PushSubscribe=true  GCTI_GMS_NodeGroup=<name of the GMS cluster>
                     GCTI_GMS_PushDeviceId=<a unique id>  GCTI_GMS_PushDeviceType=customhttp
                     GCTI_Chat_AsyncMode=true  GCTI_GMS_PushResend=true"""
