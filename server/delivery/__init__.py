"""The server's part of artifact delivery: a folder of published models, served to devices.

::

    FOLDER/
        artifacts/model.pt/1/ ...       versions, see common/delivery/versions
        tokens/phone-1                  hash of the device's token
        reports/model.pt/1/phone-1.json what the device measured with that version
        check-ins/phone-1.json          what the device runs, and whom it trusts
"""
